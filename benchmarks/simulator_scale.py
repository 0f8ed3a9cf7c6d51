"""Whether M2M draws ahead of its rivals as simulated advertisers become more.

The study of `compare_simulator.yaml` has 32,000 advertisers, as many as two
cores train on, and finds M2M level with its rivals. Here more of them, drawn
by the same simulator, train the same models with the same settings. All are
scored on the test days of all advertisers and on those of the first 32,000,
whose best possible forecasts are simulated, too.

    pip install 'jax[cuda13]'
    KERAS_BACKEND=jax python benchmarks/simulator_scale.py

It wants a GPU and some twenty minutes: the package's builders, layers and
losses run on Keras' JAX backend, four seeds of a model at once, on data that
stay in the GPU's memory. tf.data could not feed that, so batches are cut by
JAX here; `--check RECORDS` tells how they differ from those of `ForecastData`,
on the records of a run on the tables of `m2m-tf simulate`, `RECORDS/../tables`.
A model keeps the weights of its last epoch. What a file answers is not run
again; `--page-only` writes the page of what there is, without JAX.
`--same-mechanisms` asks the same where there is nothing to know of scenarios,
for a page of its own.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import importlib.metadata
import math
import multiprocessing
import os
import pathlib
import tempfile
import time

import keras
import numpy as np
import polars as pl
import yaml

from m2m_tf import comparison, files, plots, regularizers, study_page
from m2m_tf.config import (
    DatasetSpec,
    ModelSettings,
    TrainingSettings,
    parse,
)
from m2m_tf.data import schema, windows
from m2m_tf.data.dataset import ForecastData
from m2m_tf.data.sources import simulator
from m2m_tf.features import preprocessing
from m2m_tf.forecast import MEDIAN, hurdle_quantile
from m2m_tf.losses import joint_hurdle
from m2m_tf.models import build_model

try:
    import jax
    import jax.numpy as jnp
except ImportError:  # The page alone needs none.
    jax = jnp = None

# Networks trained at once, with seeds that follow one another; also those of
# a mean as `members` takes it.
NETWORKS = 4
FIRST_SEEDS = (0, 4)
DAYS = 140
# Advertisers that everything fitted comes from, and whose best possible
# forecasts are simulated: those of the study.
STUDIED = 32000
MODELS = {
    "m2m": {"name": "m2m"},
    "shared_bottom": {"name": "shared_bottom"},
    "mmoe": {"name": "mmoe"},
    "cgc": {"name": "cgc"},
    "single_task": {"name": "single_task"},
    "m2m_without_meta_tower": {"name": "m2m", "meta_tower": False},
    "m2m_without_meta_attention": {"name": "m2m", "meta_attention": False},
    "cross_stitch": {"name": "cross_stitch"},
    "mran": {"name": "mran"},
    "m2m_one_unit": {"name": "m2m", "share_meta_across_tasks": True},
}
HELD_AGAINST = ("nmae", "deviance", "relative_deviance", "median_nmae")
LABELS_FILE = "labels.json"
ALL_PART, STUDIED_PART = "all", "studied"
NETWORK, MEAN = "network", "mean"
_STEPS_A_CALL = 256
_EVALUATED = 8192
_CUT = 65536
_CONFIG = "pipelines/configs/compare_simulator.yaml"


def simulate_group(first, count, num_truths, scenario_dependence, folder):
    """Simulates one group as `write_tables` does, into arrays of pairs."""
    world = simulator.make_world(scenario_dependence)
    cutoffs, opening = simulator.plan(
        simulator.make_spec(DAYS, scenario_dependence), world
    )
    tables = simulator.simulate_group(
        world,
        first,
        count,
        days=DAYS,
        seed=0,
        cutoffs=cutoffs if first < num_truths else [],
        opening=opening,
    )

    def scattered(table, date, names, empty):
        """Values `[count, S, DAYS, columns]`, `empty` where there is no row."""
        scenarios = world.scenarios["scenario"]
        full = np.full((count, len(scenarios), DAYS, len(names)), empty)
        places = (
            table["advertiser"].str.slice(1).cast(int) - first,
            table["scenario"].replace_strict(scenarios, range(len(scenarios))),
            (table[date] - simulator.START).dt.total_days(),
        )
        full[tuple(place.to_numpy() for place in places)] = table.select(
            names
        ).to_numpy()
        return full

    names = [*simulator.BEHAVIOR, *simulator.TASKS]
    values = scattered(tables["panel"], "date", names, np.float32(0))
    entity, scenario = np.nonzero((values != 0).any((2, 3)))
    profile = tables["profile"].drop("advertiser")
    arrays = {
        "entity": first + entity,
        "scenario": scenario,
        "values": values[entity, scenario],
        **{
            f"profile_{column.name}": column.to_numpy().astype(
                str if column.dtype == pl.String else "float32"
            )
            for column in profile
        },
    }
    if "true_rates" in tables:
        for kind in ("mean", "median"):
            names = [f"{task}_{kind}" for task in simulator.TASKS]
            truth = scattered(tables["true_rates"], "cutoff", names, np.nan)
            for day in cutoffs:
                arrays[f"truth_{kind}_{day}"] = truth[entity, scenario, day]
    path = pathlib.Path(folder) / f"{first:08d}.npz"
    np.savez(path, **arrays)
    return path


def simulate(workers, advertisers, truths, scenario_dependence):
    """All groups, one after another, as a dict of arrays."""
    with tempfile.TemporaryDirectory() as folder:
        paths = workers.starmap(
            simulate_group,
            [
                (
                    first,
                    min(500, advertisers - first),
                    truths,
                    scenario_dependence,
                    folder,
                )
                for first in range(0, advertisers, 500)
            ],
            chunksize=1,
        )
        parts = {}
        for path in paths:
            with np.load(path) as arrays:
                for name in arrays.files:
                    parts.setdefault(name, []).append(arrays[name])
    return {name: np.concatenate(values) for name, values in parts.items()}


@contextlib.contextmanager
def worker_processes(count):
    """A pool of processes that leave the GPU alone."""
    context = multiprocessing.get_context("spawn")
    platforms = os.environ.get("JAX_PLATFORMS")
    os.environ["JAX_PLATFORMS"] = "cpu"
    try:
        pool = context.Pool(count)
    finally:
        del os.environ["JAX_PLATFORMS"]
        if platforms is not None:
            os.environ["JAX_PLATFORMS"] = platforms
    with pool:
        yield pool


class Data:
    """Samples of simulated pairs, cut and discretised by JAX.

    `arrays` are what a batch is cut from; `rows` are the indices of each
    split's samples. What `Preprocessor` does to raw features is done here to
    whole arrays; all that it fits is fitted on the first advertisers.
    """

    def __init__(self, panel):
        self.spec = parse(DatasetSpec, simulator.make_spec(DAYS, True))
        splits = windows.make_splits(self.spec)
        self.num_entities = len(panel["profile_seller_age"])
        # Days that anything is fitted on.
        seen = slice(windows.last_fit_day(self.spec, splits) + 1)
        values, entity = panel["values"], panel["entity"]
        totals = np.zeros((self.num_entities, *values.shape[1:]), "float32")
        # Pairs of an entity follow one another.
        owners, starts = np.unique(entity, return_index=True)
        totals[owners] = np.add.reduceat(values, starts, axis=0)
        ids, value_sizes = _discretized(values, totals, entity, seen)
        attributes = _attributes(panel, seen)
        self.scenario_names = attributes["scenario_names"]
        samples = _samples(values, totals, entity, splits)
        pair, cutoff = samples["pair"], samples["cutoff"]
        self.entity, self.labels = entity[pair], samples["labels"]
        self.rows = {
            name: np.nonzero(np.isin(cutoff, getattr(splits, name)))[0]
            for name in windows.SPLIT_NAMES
        }
        fit = self.rows["train"][self.entity[self.rows["train"]] < STUDIED]
        self.label_means = self.labels[fit].astype("float64").mean(0)
        levels = _log_levels(samples, self.label_means)
        dense = np.concatenate(
            [
                _dense(samples, attributes["numeric"][pair], fit),
                _relative(levels, self.label_means),
            ],
            1,
        )
        self.arrays = ids | {
            "owner": jnp.asarray(entity, "int32"),
            "pair": jnp.asarray(pair, "int32"),
            "cutoff": jnp.asarray(cutoff, "int32"),
            "pair_scenario": jnp.asarray(panel["scenario"], "int32"),
            "scenario": jnp.asarray(attributes["scenario_ids"], "int32"),
            "profile": jnp.asarray(attributes["profile_ids"], "int32"),
            "dense": jnp.asarray(dense, "float32"),
            "log_history": jnp.asarray(levels[..., :2], "float32"),
            "labels": jnp.asarray(self.labels),
        }
        self.scenario = attributes["scenario_ids"][panel["scenario"][pair], 0]
        self.truths = {
            kind: _truths(panel, pair, cutoff, kind)
            for kind in ("mean", "median")
        }
        self.sizes = value_sizes | {
            "scenario_sizes": attributes["scenario_sizes"],
            "profile_sizes": attributes["profile_sizes"],
            "num_dense_features": dense.shape[1],
        }

    def model_inputs(self):

        return schema.ModelInputSpec(
            lookback=self.spec.lookback,
            horizon=self.spec.horizon,
            task_names=self.spec.task_names,
            known_future_sizes=(),
            num_history_levels=2,
            **self.sizes,
        )


def _discretized(values, totals, entity, seen):
    """Ids of all days of pairs and totals, and the number of each column's."""

    @jax.jit
    def bucketize(column, edges):
        bucket = jnp.searchsorted(edges, column, side="right")
        return jnp.where(column == 0, 1, 2 + bucket).astype("uint8")

    fit = entity < STUDIED
    own_edges, total_edges = (
        [
            preprocessing.quantile_edges(column[column != 0])
            for column in np.moveaxis(table[:, seen], -1, 0)
        ]
        for table in (values[fit], totals[:STUDIED])
    )
    ids = {}
    for key, table, edges in (
        ("ids", values, own_edges),
        ("total_ids", totals, total_edges),
    ):
        columns = [
            bucketize(jnp.asarray(table[..., i]), jnp.asarray(found, "float32"))
            for i, found in enumerate(edges)
        ]
        ids[key] = jnp.stack(columns, -1)
    num_behaviors = len(simulator.BEHAVIOR)
    sizes = {}
    for key, columns in (
        ("behavior_sizes", slice(num_behaviors)),
        ("performance_sizes", slice(num_behaviors, None)),
    ):
        chosen = [*own_edges[columns], *total_edges[columns]]
        # Missing, zero, and a bucket more than there are edges.
        sizes[key] = tuple(len(edges) + 3 for edges in chosen)
    return ids, sizes


def _attributes(panel, seen):
    """Ids of scenarios `[S, A]` and entities `[E, A]`, numbers of pairs."""
    columns = simulator.make_spec(DAYS, True)
    entity, scenario = panel["entity"], panel["scenario"]
    active = (panel["values"][:, seen] != 0).any((1, 2)) & (entity < STUDIED)
    numbers = []

    def categories(values, known):
        words = np.unique(known)
        place = np.minimum(np.searchsorted(words, values), len(words) - 1)
        ids = np.where(words[place] == values, place + 1, 0)
        return ids, len(words) + 1, words

    def discretized(values, known):
        edges = preprocessing.quantile_edges(known)
        bucket = np.searchsorted(
            np.asarray(edges, "float32"), values, side="right"
        )
        return np.where(values == 0, 1, 2 + bucket), len(edges) + 3

    def encoded(table, names, rows, of_pair):
        encodings = []
        for name in names["categorical"]:
            encodings.append(categories(table[name], table[name][rows])[:2])
        for name in names["numeric"]:
            encodings.append(discretized(table[name], table[name][rows]))
            numbers.append(table[name][of_pair])
        return encodings

    scenarios = {
        column.name: column.to_numpy()
        for column in simulator.make_world().scenarios
    }
    scenarios = {
        name: values.astype(str) if values.dtype == object else values
        for name, values in scenarios.items()
    }
    known = np.unique(scenario[active])
    ids, size, names = categories(
        scenarios["scenario"], scenarios["scenario"][known]
    )
    of_scenario = [
        (ids, size),
        *encoded(scenarios, columns["scenario_columns"], known, scenario),
    ]
    profile = {
        name.removeprefix("profile_"): values
        for name, values in panel.items()
        if name.startswith("profile_")
    }
    of_profile = encoded(
        profile, columns["profile_columns"], np.unique(entity[active]), entity
    )
    return {
        "scenario_names": ("(unknown)", *names.tolist()),
        "scenario_ids": np.stack([ids for ids, _ in of_scenario], 1),
        "scenario_sizes": tuple(size for _, size in of_scenario),
        "profile_ids": np.stack([ids for ids, _ in of_profile], 1),
        "profile_sizes": tuple(size for _, size in of_profile),
        "numeric": np.stack(numbers, 1).astype("float32"),
    }


def _samples(values, totals, entity, splits):
    """The pairs active before each cutoff, with sums over their windows."""

    @jax.jit
    def sums(own, total):
        past, future = (
            own[:, : simulator.LOOKBACK],
            own[:, simulator.LOOKBACK :],
        )
        return {
            "lookback": jnp.stack([past.sum(1), total.sum(1)], 1),
            "week": jnp.stack(
                [
                    past[:, -simulator.HORIZON :].sum(1),
                    total[:, -simulator.HORIZON :].sum(1),
                ],
                1,
            ),
            "labels": future[..., len(simulator.BEHAVIOR) :].sum(1),
        }

    parts = []
    for cutoff in (*splits.train, *splits.validation, *splits.test):
        first = cutoff + 1 - simulator.LOOKBACK
        # The last task is `active_days`.
        pairs = np.nonzero((values[:, first : cutoff + 1, -1] != 0).any(1))[0]
        for some in np.array_split(pairs, 1 + len(pairs) // _CUT):
            found = sums(
                jnp.asarray(
                    values[some, first : cutoff + 1 + simulator.HORIZON]
                ),
                jnp.asarray(totals[entity[some], first : cutoff + 1]),
            )
            parts.append(
                {name: np.asarray(array) for name, array in found.items()}
                | {"pair": some, "cutoff": np.full(len(some), cutoff)}
            )
    return {
        name: np.concatenate([part[name] for part in parts])
        for name in parts[0]
    }


def _dense(samples, numeric, fit):
    """Standardised dense features, in the order of `dense_features`."""
    scaled = samples["lookback"] * np.float32(
        simulator.HORIZON / simulator.LOOKBACK
    )
    num_samples = len(scaled)
    blocks = []
    for columns in (
        slice(len(simulator.BEHAVIOR)),
        slice(len(simulator.BEHAVIOR), None),
    ):
        for sums in (scaled, samples["week"]):
            # Own columns, then totals.
            chosen = sums[:, :, columns].reshape(num_samples, -1)
            blocks.append(np.log1p(chosen))
    blocks.append(np.sign(numeric) * np.log1p(np.abs(numeric)))
    day = (samples["cutoff"] + (simulator.START - windows.EPOCH).days).astype(
        "float32"
    )
    # All lie within a year, and later days are the last one of training.
    held = np.minimum(day, day[fit].max())
    for days, length in ((day, 7.0), (held, 365.25)):
        angle = 2 * np.pi * np.mod(days, length) / length
        blocks.append(np.stack([np.sin(angle), np.cos(angle)], 1))
    dense = np.concatenate(blocks, 1).astype("float32")
    mean = dense[fit].astype("float64").mean(0)
    std = dense[fit].astype("float64").std(0)
    std[std < 1e-6] = 1.0
    return np.clip((dense - mean) / std, -8, 8).astype("float32")


def _log_levels(samples, label_means):
    """Logs of the tasks' levels `[N, T, 3]`: own, recent, total."""
    of_tasks = np.s_[:, :, len(simulator.BEHAVIOR) :]
    lookback = samples["lookback"][of_tasks] * np.float32(
        simulator.HORIZON / simulator.LOOKBACK
    )
    own, total = lookback[:, 0], lookback[:, 1]
    recent = 0.5 * (own + samples["week"][of_tasks][:, 0])
    floor = preprocessing._LEVEL_FLOOR * label_means
    return np.log(np.stack([own, recent, total], -1) + floor[:, None])


def _relative(log_levels, label_means):
    relative = log_levels - np.log(label_means)[:, None]
    return preprocessing._LEVEL_SCALE * relative.reshape(len(relative), -1)


def _truths(panel, pair, cutoff, kind):
    """Best possible forecasts of each sample `[N, T]`; NaN where unknown."""
    truths = np.full((len(pair), len(simulator.TASKS)), np.nan)
    for name, table in panel.items():
        if name.startswith(f"truth_{kind}_"):
            # Their pairs come first.
            rows = (cutoff == int(name.split("_")[-1])) & (pair < len(table))
            truths[rows] = table[pair[rows]]
    return truths


def cut_batch(arrays, rows):
    """Model inputs and labels of the samples `rows`."""
    pair, cutoff = arrays["pair"][rows], arrays["cutoff"][rows]
    owner = arrays["owner"][pair]
    days = cutoff[:, None] + jnp.arange(1 - simulator.LOOKBACK, 1)
    columns = len(simulator.BEHAVIOR)
    own = arrays["ids"][pair[:, None], days].astype("int32")
    total = arrays["total_ids"][owner[:, None], days].astype("int32")
    inputs = {
        "behavior_sequence": jnp.concatenate(
            [own[..., :columns], total[..., :columns]], -1
        ),
        "performance_sequence": jnp.concatenate(
            [own[..., columns:], total[..., columns:]], -1
        ),
        "sequence_mask": jnp.ones(days.shape, "int32"),
        "scenario_features": arrays["scenario"][arrays["pair_scenario"][pair]],
        "profile_features": arrays["profile"][owner],
        "dense_features": arrays["dense"][rows],
        "log_history": arrays["log_history"][rows],
    }
    return inputs, arrays["labels"][rows]


def initial_weights(inputs, settings, label_means, seeds):
    """Weights of all seeds `[seeds, ...]`, in a process without the GPU."""
    networks = []
    for seed in seeds:
        keras.utils.set_random_seed(seed + 1)
        model = build_model(inputs, settings, label_means)
        networks.append(
            [np.asarray(v.value) for v in model.trainable_variables]
        )
    return [np.stack(of_seeds) for of_seeds in zip(*networks, strict=True)]


class Trainer:
    """Several seeds of one model, trained and asked at once."""

    def __init__(self, data, settings, training):
        self.training = training
        self.model = build_model(
            data.model_inputs(), settings, data.label_means.tolist()
        )
        if self.model.non_trainable_variables:
            raise ValueError("Dropout is not carried from step to step here.")
        self.names = data.spec.task_names
        self.weights = {
            name: 1 / mean
            for name, mean in zip(self.names, data.label_means, strict=True)
        }
        # Days have no limit here, as when this study was begun.
        self.losses = joint_hurdle(self.weights)
        self.train_steps = jax.jit(self._train_steps, donate_argnums=0)
        self.forecast = jax.jit(self._forecast)

    def _loss(self, weights, inputs, labels):
        outputs, _, penalties = self.model.stateless_call(
            weights, [], inputs, training=True, return_losses=True
        )
        total = sum(penalties)
        for index, name in enumerate(self.names):
            loss = self.losses[name](labels[:, index, None], outputs[name])
            total = total + self.weights[name] * loss
        return total

    def _train_steps(self, state, arrays, rows, count, total):
        """Steps on `rows` `[steps, seeds, batch]`, from step `count` on."""
        training = self.training

        def gradient(weights, rows):
            inputs, labels = cut_batch(arrays, rows)
            return jax.value_and_grad(self._loss)(weights, inputs, labels)

        def step(carry, rows):
            (weights, first, second), count = carry
            loss, gradients = jax.vmap(gradient)(weights, rows)
            share = count / total
            rate = training.learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * share))
            count = count + 1
            rate *= jnp.sqrt(1 - training.beta_2**count) / (1 - 0.9**count)
            new = ([], [], [])
            for w, m, v, g in zip(
                weights, first, second, gradients, strict=True
            ):
                g = jnp.clip(g, -training.clip_value, training.clip_value)
                m = m + 0.1 * (g - m)
                v = v + (1 - training.beta_2) * (g * g - v)
                w = w - rate * m / (jnp.sqrt(v) + training.epsilon)
                for values, value in zip(new, (w, m, v), strict=True):
                    values.append(value)
            # Steps past the last one are there to fill the call.
            live = count <= total
            state = jax.tree.map(
                functools.partial(jnp.where, live), new, carry[0]
            )
            return (state, count), loss

        (state, count), losses = jax.lax.scan(step, (state, count), rows)
        return state, losses

    def _forecast(self, weights, arrays, rows):
        """Means and medians `[calls, seeds + 1, batch, T, 2]`."""
        whole = [name in ("pv", "click", "active_days") for name in self.names]

        def ask(weights, rows):
            inputs, _ = cut_batch(arrays, rows)
            outputs, _ = self.model.stateless_call(weights, [], inputs)
            return jnp.stack([outputs[name] for name in self.names], 1)

        def points(parameters):
            medians = [
                hurdle_quantile(parameters[:, i], MEDIAN, is_whole)
                for i, is_whole in enumerate(whole)
            ]
            means = jnp.exp(parameters[..., 0])
            return jnp.stack([means, jnp.stack(medians, 1)], -1)

        def one(rows):
            parameters = jax.vmap(ask, (0, None))(weights, rows)
            mixed = jnp.concatenate(
                [
                    jax.nn.logsumexp(parameters[..., :1], 0)
                    - math.log(NETWORKS),
                    parameters[..., 1:].mean(0),
                ],
                -1,
            )
            return jax.vmap(points)(
                jnp.concatenate([parameters, mixed[None]], 0)
            )

        return jax.lax.map(one, rows)

    def lower(self, data, batch_size=None):
        """What trains on batches, or without a size forecasts, to compile."""
        weights = [
            jax.ShapeDtypeStruct((NETWORKS, *v.shape), jnp.float32)
            for v in self.model.trainable_variables
        ]
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), data.arrays
        )
        if batch_size is None:
            rows = jax.ShapeDtypeStruct((4, _EVALUATED), jnp.int32)
            return self.forecast.lower(weights, shapes, rows)
        rows = jax.ShapeDtypeStruct(
            (_STEPS_A_CALL, NETWORKS, batch_size), jnp.int32
        )
        scalar = jax.ShapeDtypeStruct((), jnp.float32)
        state = (weights, weights, weights)
        return self.train_steps.lower(state, shapes, rows, scalar, scalar)

    def fit(self, compiled, data, advertisers, batch_size, seeds, initial):
        """Trains on the first advertisers; returns weights and last loss."""
        rows = data.rows["train"]
        rows = rows[data.entity[rows] < advertisers].astype("int32")
        steps = len(rows) // batch_size
        total = steps * self.training.epochs
        generators = [np.random.default_rng(seed) for seed in seeds]
        weights = [jnp.asarray(w) for w in initial]
        state = (weights, *(list(map(jnp.zeros_like, weights)) for _ in "mv"))
        order = []
        for _ in range(self.training.epochs):
            order.append(
                np.stack(
                    [
                        rng.permutation(rows)[: steps * batch_size].reshape(
                            steps, batch_size
                        )
                        for rng in generators
                    ],
                    1,
                )
            )
        order = np.concatenate(order)
        fill = -len(order) % _STEPS_A_CALL
        order = np.resize(order, (len(order) + fill, *order.shape[1:]))
        for first in range(0, len(order), _STEPS_A_CALL):
            state, losses = compiled(
                state,
                data.arrays,
                jnp.asarray(order[first : first + _STEPS_A_CALL]),
                jnp.float32(first),
                jnp.float32(total),
            )
        return state[0], np.asarray(losses)[-1 - fill]

    def ask(self, compiled, data, weights, rows):
        """Forecasts of samples, `[seeds + 1, N, T, 2]`; last: their mean."""
        size = 4 * _EVALUATED
        padded = np.resize(rows, -(-len(rows) // size) * size)
        found = []
        for first in range(0, len(padded), size):
            some = padded[first : first + size].reshape(4, _EVALUATED)
            told = compiled(weights, data.arrays, jnp.asarray(some, jnp.int32))
            told = np.asarray(told)  # [4, seeds + 1, batch, T, 2]
            found.append(np.concatenate(list(told), 1))
        return np.concatenate(found, 1)[:, : len(rows)]


def parts(data, groups, rows):
    """Rows to score on and the groups of their entities, by name.

    Of the first advertisers alone no intervals are drawn: one group.
    """
    studied = rows[data.entity[rows] < STUDIED]
    none = np.zeros(len(studied), int)
    found = {STUDIED_PART: (studied, none)}
    if data.num_entities > STUDIED:
        found[ALL_PART] = (rows, groups[data.entity[rows]])
    return found


def score(data, groups, rows, forecasts):
    """Part → sums of each of the forecasts `[K, len(rows), T, 2]`."""
    found = {}
    for name, (chosen, of_entity) in parts(data, groups, rows).items():
        place = np.searchsorted(rows, chosen)
        found[name] = [
            comparison.to_lists(
                _ungrouped(
                    name,
                    comparison.forecast_sums(
                        data.labels[chosen],
                        told[place][..., 0],
                        told[place][..., 1],
                        data.scenario[chosen],
                        of_entity,
                        len(data.scenario_names),
                    ),
                )
            )
            for told in forecasts
        ]
    return found


def _ungrouped(part, sums):
    if part == ALL_PART:
        return sums
    return {name: values[..., :1] for name, values in sums.items()}


def check(data, records):
    """Largest differences from the model inputs of `ForecastData`."""
    spec = DatasetSpec.load(pathlib.Path(records).parent / "tables/spec.yaml")
    theirs = ForecastData.prepare(spec, records)
    sizes = theirs.preprocessor.model_inputs
    print("sizes equal:", sizes == data.model_inputs())
    cutoffs = np.asarray(data.arrays["cutoff"])
    place = {}
    known = {name: i for i, name in enumerate(data.scenario_names)}
    for row in data.rows["test"]:
        key = (data.entity[row], data.scenario[row], cutoffs[row])
        place[key] = row
    cut = jax.jit(cut_batch)

    first_day = (simulator.START - windows.EPOCH).days
    for raw in list(theirs.raw("test", 4096).as_numpy_iterator())[::3]:
        rows = np.array(
            [
                place[int(e[1:]), known.get(s.decode(), 0), int(c) - first_day]
                for e, s, c in zip(
                    raw["entity"], raw["scenario"], raw["cutoff"], strict=True
                )
            ]
        )
        inputs, labels = cut(data.arrays, rows)
        expected = theirs.preprocessor.call(raw)
        print(
            {
                name: float(
                    np.abs(
                        np.asarray(inputs[name], "float64")
                        - np.asarray(expected[name], "float64")
                    ).max()
                )
                for name in inputs
            },
            "labels",
            float(np.abs(np.asarray(labels) - raw["labels"]).max()),
        )


def run(arguments, scales):
    """Trains and scores what the folder of results lacks."""
    started = time.monotonic()

    def tell(text):
        print(f"{time.monotonic() - started:7.1f} s  {text}", flush=True)

    results = pathlib.Path(arguments.results)
    with worker_processes(arguments.workers) as workers:
        panel = simulate(
            workers,
            max(scales)[0],
            0 if arguments.check else STUDIED,
            not arguments.same_mechanisms,
        )
        tell(f"{len(panel['entity'])} pairs simulated")
        data = Data(panel)
        del panel
        tell(f"{len(data.labels)} samples")
        if arguments.check:
            check(data, arguments.check)
            return
        groups = write_labels(results, data, scales, arguments.same_mechanisms)
        train_all(arguments, results, workers, data, groups, scales, tell)


def write_labels(results, data, scales, same_mechanisms):
    """Writes what all models share; returns the group of each entity."""
    groups = comparison.entity_groups(
        [f"a{i:07d}" for i in range(data.num_entities)]
    )
    rows = data.rows["test"]
    studied = rows[data.entity[rows] < STUDIED]
    truth = np.zeros((len(rows), len(data.spec.task_names), 2))
    truth[data.entity[rows] < STUDIED] = np.stack(
        [data.truths[kind][studied] for kind in ("mean", "median")], -1
    )
    if np.isnan(truth).any():
        raise ValueError("A sample has no best possible forecast.")
    values = {
        "tasks": list(data.spec.task_names),
        "scenarios": list(data.scenario_names),
        "samples": {
            str(scale): {
                name: np.bincount(
                    data.scenario[found[data.entity[found] < scale]],
                    minlength=len(data.scenario_names),
                ).tolist()
                for name, found in data.rows.items()
            }
            for scale, _ in scales
        },
        "labels": {
            name: comparison.to_lists(
                _ungrouped(
                    name,
                    comparison.label_sums(
                        data.labels[chosen],
                        data.scenario[chosen],
                        of_entity,
                        len(data.scenario_names),
                    ),
                )
            )
            for name, (chosen, of_entity) in parts(data, groups, rows).items()
        },
        comparison.TRUE_RATES: score(data, groups, rows, [truth])[STUDIED_PART],
        "same_mechanisms": same_mechanisms,
        "device": jax.devices()[0].device_kind,
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("jax", "keras", "numpy")
        },
    }
    path = results / LABELS_FILE
    if path.exists():
        before = files.read_json(path)
        _require_same(before["labels"], values["labels"], path)
        values["samples"] = before["samples"] | values["samples"]
    files.write_compact_json(path, values)
    return groups


def _require_same(before, labels, path):
    """Raises ValueError where other advertisers were drawn than before.

    Processors round differently, so that one seed does not draw the same on
    all of them, and results in one folder are scored on the same samples.
    """
    for part, sums in labels.items():
        for name, values in sums.items():
            if not np.allclose(before[part][name], values, rtol=1e-4):
                raise ValueError(
                    f"{path} tells of other samples ({part}, {name}): it was "
                    "made with other scales or mechanisms, or on another kind "
                    "of processor. "
                    "Give another folder as --results."
                )


def train_all(arguments, results, workers, data, groups, scales, tell):
    """Trains, scores and writes one model after another."""
    jax.config.update("jax_default_matmul_precision", "float32")
    # The package's penalty is one TensorFlow operation.
    regularizers.L2.__call__ = lambda self, x: (
        self.l2 * keras.ops.sum(keras.ops.square(x))
    )
    study = yaml.safe_load(pathlib.Path(_CONFIG).read_text())
    study["model"]["head_normalization"] = True  # What the search chose.
    training = parse(TrainingSettings, study["training"])
    rows = data.rows["test"]
    todo = [
        (first, scale, batch_size, name)
        for first in arguments.first_seeds
        for scale, batch_size in scales
        for name in arguments.models
        if not result_path(results, name, scale, first).exists()
    ]
    settings = {
        name: parse(ModelSettings, study["model"] | MODELS[name])
        for name in arguments.models
    }
    means = data.label_means.tolist()
    initial = {}
    for first, _, _, name in todo:
        if (name, first) not in initial:
            seeds = range(first, first + NETWORKS)
            initial[name, first] = workers.apply_async(
                initial_weights,
                (data.model_inputs(), settings[name], means, seeds),
            )
    threads = concurrent.futures.ThreadPoolExecutor(arguments.workers)
    # Keras and its tracing are not for several threads.
    builder = concurrent.futures.ThreadPoolExecutor(1)

    @functools.cache
    def prepare(name):
        with jax.default_device(jax.devices("cpu")[0]):
            return Trainer(data, settings[name], training)

    def start_compiling(name, size):
        return threads.submit(prepare(name).lower(data, size).compile)

    # What is needed first goes first.
    compiled = {}
    for _, _, batch_size, name in todo:
        for size in (batch_size, None):
            if (name, size) not in compiled:
                compiled[name, size] = builder.submit(
                    start_compiling, name, size
                )
    end = time.monotonic() + arguments.deadline
    written = []
    for first, scale, batch_size, name in todo:
        seeds = range(first, first + NETWORKS)
        what = f"{name}, {scale} advertisers, seeds from {first}"
        if time.monotonic() > end:
            tell(f"no time for {what}")
            continue
        steps = compiled[name, batch_size].result().result()
        ask = compiled[name, None].result().result()
        trainer = prepare(name)
        before = time.monotonic()
        weights, loss = trainer.fit(
            steps, data, scale, batch_size, seeds, initial[name, first].get()
        )
        result = {
            "advertisers": scale,
            "batch_size": batch_size,
            "model": name,
            "seeds": list(seeds),
            "seconds": round(time.monotonic() - before, 1),
            "loss": loss.tolist(),
        }
        told = trainer.ask(ask, data, weights, rows)
        path = result_path(results, name, scale, first)
        written.append(
            threads.submit(write_result, path, result, data, groups, rows, told)
        )
        tell(f"{what}: {result['seconds']} s, loss {loss.round(4)}")
    for future in written:
        future.result()


def result_path(results, name, advertisers, first_seed):
    return results / f"{name}-{advertisers}-{first_seed}.json"


def write_result(path, result, data, groups, rows, told):
    """Scores forecasts and writes the file of a model on a scale."""
    result["sums"] = score(data, groups, rows, told)
    files.write_compact_json(path, result)


def read_runs(results):
    """Results: advertisers → model → part → NETWORK and MEAN → sums of each."""
    runs = {}
    for name in MODELS:
        found = map(files.read_json, results.glob(f"{name}-*.json"))
        for run in sorted(found, key=lambda run: run["seeds"]):
            parts = runs.setdefault(run["advertisers"], {}).setdefault(name, {})
            for part, sums in run["sums"].items():
                kinds = parts.setdefault(part, {NETWORK: [], MEAN: []})
                kinds[NETWORK] += sums[:-1]
                kinds[MEAN] += sums[-1:]
    return runs


def write_page(results):
    """Writes `<results>.md`, of the files in the folder and its notes."""
    shared = files.read_json(results / LABELS_FILE)
    names, labels = shared["scenarios"], shared["labels"]
    runs = read_runs(results)
    largest = max(runs)
    train = np.array(shared["samples"][str(largest)]["train"])
    major = int(train.argmax())
    minor = [i for i in range(len(names)) if i != major]
    versions = ", ".join(f"{k} {v}" for k, v in shared["versions"].items())
    lines = [
        study_page.read_notes(results, "# Simulator: more advertisers\n"),
        "## Origin",
        "",
        "Made by `KERAS_BACKEND=jax python benchmarks/simulator_scale.py"
        f"{' --same-mechanisms' if shared['same_mechanisms'] else ''}` "
        f"on one {shared['device']}; {versions}. Seeds count from 0; ± is the "
        "standard deviation over them. Overall values are means over the "
        "cells task × scenario of the test split, intervals as in "
        "[simulator.md](simulator.md). "
        f"Means are of {NETWORKS} networks, as `members` takes them; "
        "intervals of theirs draw from as many means as there are.",
        "",
    ]
    lines += study_page.markdown_table(
        [f"samples of {largest:,} advertisers", *names],
        [
            [split, *(f"{count:,}" for count in counts)]
            for split, counts in shared["samples"][str(largest)].items()
        ],
    )
    lines += [f"## Trained and tested on {largest:,} advertisers", ""]
    found = {name: run[ALL_PART] for name, run in runs[largest].items()}
    titles = study_page.TITLES
    for head, chosen in (
        ("one network", NETWORK),
        (f"mean of {NETWORKS}", MEAN),
    ):
        lines += study_page.markdown_table(
            [head, "trained", *titles.values()],
            [
                [
                    name,
                    str(len(sums[chosen])),
                    *study_page.overall_texts(sums[chosen], labels[ALL_PART]),
                ]
                for name, sums in found.items()
            ],
        )
    groups = {
        "all scenarios": list(range(len(names))),
        f"major ({names[major]})": [major],
        "minor": minor,
    }
    rivals = [name for name in found if name != "m2m"]
    held = {}
    for metric in HELD_AGAINST:
        rows = []
        for rival in rivals:
            row = [rival]
            for chosen in (NETWORK, MEAN):
                differences = [
                    comparison.difference(
                        found["m2m"][chosen],
                        found[rival][chosen],
                        labels[ALL_PART],
                        metric,
                        scenarios,
                    )
                    for scenarios in groups.values()
                ]
                if chosen == NETWORK:
                    held.setdefault(titles[metric], {})[rival] = differences[0]
                row += map(study_page.difference_text, differences)
            rows.append(row)
        lines += [
            f"### M2M minus rival: {titles[metric]}",
            "",
            "Below 0 M2M is better; **bold** where the interval excludes 0.",
            "",
            *study_page.markdown_table(
                ["rival", *groups, *(f"means: {name}" for name in groups)], rows
            ),
        ]
    for metric in ("nmae", "relative_deviance"):
        lines += [
            f"### M2M minus rival in each scenario: {titles[metric]}",
            "",
            "One network.",
            "",
            *study_page.markdown_table(
                ["rival", *names],
                [
                    [
                        rival,
                        *(
                            study_page.difference_text(
                                comparison.difference(
                                    found["m2m"][NETWORK],
                                    found[rival][NETWORK],
                                    labels[ALL_PART],
                                    metric,
                                    [index],
                                )
                            )
                            for index in range(len(names))
                        ),
                    ]
                    for rival in rivals
                ],
            ),
        ]
    path = results / "differences.png"
    plots.plot_differences(held, path)
    lines += [f"![M2M minus each rival]({results.name}/{path.name})", ""]
    lines += [
        f"## More advertisers to train on, tested on the first {STUDIED:,}",
        "",
        "One network; in brackets how far it is above the best possible "
        "forecasts, which know the hidden state.",
        "",
    ]
    best = shared[comparison.TRUE_RATES]
    rows = []
    for scale, of_scale in sorted(runs.items()):
        for name, run in of_scale.items():
            row = [f"{scale:,}", name]
            for metric in HELD_AGAINST:
                values, (truth,) = (
                    study_page.overall_values(
                        sums, labels[STUDIED_PART], metric
                    )
                    for sums in (run[STUDIED_PART][NETWORK], best)
                )
                above = np.mean(values) / truth - 1
                row.append(f"{study_page.spread_text(values)} ({above:+.1%})")
            rows.append(row)
    lines += study_page.markdown_table(
        ["trained on", "model", *(titles[metric] for metric in HELD_AGAINST)],
        rows,
    )
    files.write_text(
        results.with_name(results.name + ".md"),
        "\n".join(lines).rstrip() + "\n",
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--same-mechanisms",
        action="store_true",
        help="simulate scenarios that do not differ in what moves the tasks",
    )
    parser.add_argument(
        "--results",
        help="folder (default: docs/results/simulator_scale, or "
        "docs/results/simulator_scale_same)",
    )
    parser.add_argument(
        "--first-seeds",
        nargs="+",
        type=int,
        default=list(FIRST_SEEDS),
        help=f"train {NETWORKS} seeds from each of these on, in this order",
    )
    parser.add_argument(
        "--scales",
        nargs="+",
        default=["256000:1024", "32000:256"],
        metavar="ADVERTISERS:BATCH",
        help="what to train on, in this order",
    )
    parser.add_argument(
        "--models", nargs="+", choices=list(MODELS), default=list(MODELS)
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument(
        "--deadline",
        type=float,
        default=math.inf,
        help="seconds of training after which nothing more is begun",
    )
    parser.add_argument("--check", help="records of the study, to compare with")
    parser.add_argument("--page-only", action="store_true")
    arguments = parser.parse_args()
    scales = [tuple(map(int, x.split(":"))) for x in arguments.scales]
    arguments.results = arguments.results or (
        "docs/results/simulator_scale"
        + ("_same" if arguments.same_mechanisms else "")
    )
    if max(scales)[0] <= STUDIED and not arguments.check:
        parser.error(f"one scale must have more than {STUDIED} advertisers")
    if not arguments.page_only:
        if jax is None or keras.backend.backend() != "jax":
            parser.error("install jax and set KERAS_BACKEND=jax")
        run(arguments, scales)
    if not arguments.check:
        write_page(pathlib.Path(arguments.results))


if __name__ == "__main__":
    main()

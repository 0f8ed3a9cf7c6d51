"""How much simulated advertisers' forecasts gain from known mechanisms.

    python benchmarks/mechanisms.py --output docs/results/mechanisms.md

LightGBM is told here, by further columns, what behaviours have added to each
log rate, in worlds of few and many scenarios: that is about what a model can
hope for that learns how scenarios differ. What a file beside the page answers
is not fitted again.
"""

import argparse
import dataclasses
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from m2m_tf import __version__, comparison, files, study_page
from m2m_tf.baselines import lightgbm
from m2m_tf.config import DatasetSpec, SimulatorSource, to_values
from m2m_tf.data import schema, windows
from m2m_tf.data.dataset import ForecastData
from m2m_tf.data.sources import simulator
from pipelines.steps import write_source_tables

_WORLD = SimulatorSource("simulator", advertisers=16000, days=140)
WORLDS = {
    f"{scenarios} scenarios, strength {strength}": dataclasses.replace(
        _WORLD, scenarios=scenarios, mechanism_strength=strength
    )
    for scenarios in (6, 24)
    for strength in (0.5, 1.0)
}
PLAIN, TOLD = "LightGBM", "told the mechanisms"
_PARTS = ["in the major scenario", "in known minor ones", "in new ones"]
# Over how many of the last days what they have added is averaged: what the
# week to come is to be compared with. 1: what they add on the day after.
_SPANS = (1, 7, simulator.LOOKBACK)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, default="runs/mechanisms")
    options = parser.parse_args()
    results = options.output.with_suffix("")
    for name in WORLDS:
        path = results / f"{_slug(name)}.json"
        if not path.exists():
            print(name, flush=True)
            run(name, options.work / _slug(name), path)
    text = report(results)
    files.write_text(options.output, text)
    print(text)


def run(name, work, path):
    """Fits both, stopped early by validation, and scores the test split."""
    source = WORLDS[name]
    spec = work / "tables" / "spec.yaml"
    if not spec.exists():
        write_source_tables(source, spec.parent)
    data = ForecastData.prepare(DatasetSpec.load(spec), work / "records")
    world = simulator.make_world(
        source.scenario_dependence, source.mechanism_strength, source.scenarios
    )
    splits = [
        list(data.raw(split, 1024).as_numpy_iterator())
        for split in ("train", "validation", "test")
    ]
    test = {
        name: np.concatenate([raw[name] for raw in splits[2]])
        for name in (windows.LABELS, schema.ENTITY, schema.SCENARIO)
    }
    scenarios = data.preprocessor.scenario_names
    scored = (
        data.preprocessor.scenario_ids(schema.as_text(test[schema.SCENARIO])),
        comparison.entity_groups(schema.as_text(test[schema.ENTITY])),
        len(scenarios),
    )
    kinds = {
        PLAIN: (data.spec, splits),
        TOLD: _told(data.spec, splits, world),
    }
    sums = {}
    for kind, (spec, batches) in kinds.items():
        made = lightgbm.forecast(spec, *batches)
        sums[kind] = comparison.forecast_sums(
            test[windows.LABELS],
            made[lightgbm.POISSON],
            made[lightgbm.MEDIAN],
            *scored,
        )
    labels = comparison.label_sums(test[windows.LABELS], *scored)
    files.write_compact_json(
        path,
        {
            "version": __version__,
            "data": to_values(source),
            "scenarios": list(scenarios),
            "labels": comparison.to_lists(labels),
            "sums": {k: comparison.to_lists(v) for k, v in sums.items()},
        },
    )


def _told(spec, splits, world):
    """Spec and batches with what behaviours add to the four log rates."""
    columns = [
        f"moved_{rate}_{span}"
        for span in _SPANS
        for rate in ("pv", "click", "cost", "order")
    ]
    weights = world.weights(np.arange(simulator.CATEGORIES))
    places = {
        name: index for index, name in enumerate(world.scenarios["scenario"])
    }

    def told(raw):
        category = [
            int(name.removeprefix("category_"))
            for name in schema.as_text(raw[schema.PROFILE_PREFIX + "category"])
        ]
        scenario = [
            places[name] for name in schema.as_text(raw[schema.SCENARIO])
        ]
        # Before the totals over all scenarios.
        behavior = raw[schema.BEHAVIOR_SEQUENCE][..., : len(spec.behavior)]
        moved = simulator.moved_rates(behavior, weights[category, scenario])
        values = np.concatenate(
            [moved[:, -span:].mean(axis=1) for span in _SPANS], axis=1
        ).astype("float32")
        return raw | {
            schema.SCENARIO_PREFIX + name: column
            for name, column in zip(columns, values.T, strict=True)
        }

    own = spec.scenario_columns
    spec = dataclasses.replace(
        spec,
        scenario_columns=dataclasses.replace(
            own, numeric=[*own.numeric, *columns]
        ),
    )
    return spec, [[told(raw) for raw in batches] for batches in splits]


def report(results):
    """The page of all results that there are."""
    versions, rows = set(), []
    for name in WORLDS:
        path = results / f"{_slug(name)}.json"
        if not path.exists():
            continue
        result = files.read_json(path)
        versions.add(result["version"])
        rows.append([name, *_texts(result)])
    head = ["", PLAIN, TOLD, "takes off, over all", *_PARTS]
    return "\n".join(
        [
            "# What knowing the mechanisms is worth",
            "",
            "`python benchmarks/mechanisms.py --output "
            "docs/results/mechanisms.md`, m2m_tf "
            f"{' and '.join(sorted(versions))}. "
            f"{_WORLD.advertisers:,} simulated advertisers over "
            f"{_WORLD.days} days. In the simulator a behaviour moves what "
            "comes of it by the scenario and the advertiser's category. "
            f"*{TOLD}*: LightGBM has, beside its own columns, what behaviours "
            "have added to the logs of views, clicks per view, cost per click "
            "and orders per click, as the simulator reckons it, on the day "
            "after the cutoff and in the mean of the last 7 and "
            f"{simulator.LOOKBACK} days. A model that learns the mechanisms "
            "can hope for about as much. Poisson deviance / mean label on the "
            "test split, the mean over task × scenario, one seed; 95 % "
            "intervals over entities; trees are stopped early by the "
            "validation split.",
            "",
            *study_page.markdown_table(head, rows),
        ]
    )


def _texts(result):
    labels = result["labels"]
    names = result["scenarios"]
    major = names.index("sponsored_search")
    minor = [i for i in range(1, len(names)) if i != major]
    plain, told = ([result["sums"][kind]] for kind in (PLAIN, TOLD))
    metric = "relative_deviance"

    def mean(runs, scenarios=None):
        values = comparison.cell_values(runs[0], labels, metric)
        return float(comparison.overall(values, scenarios))

    texts = [f"{mean(plain):.4f}", f"{mean(told):.4f}"]
    for scenarios in (None, [major], minor, [0]):
        found = comparison.difference(
            plain, told, labels, metric, scenarios=scenarios
        )
        share = 100 * found.value / mean(plain, scenarios)
        texts.append(f"{study_page.difference_text(found)} ({share:.0f} %)")
    return texts


def _slug(name):
    return name.replace(", ", "_").replace(" ", "_")


if __name__ == "__main__":
    main()

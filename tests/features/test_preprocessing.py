import dataclasses
import datetime
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, strategies as st
from tables import write_clinic_tables

from m2m_tf.baselines import naive_forecasts
from m2m_tf.config import DatasetSpec, Task
from m2m_tf.data import schema, windows
from m2m_tf.data.dataset import ForecastData
from m2m_tf.data.validation import DataValidationError
from m2m_tf.features import Preprocessor
from m2m_tf.features.preprocessing import _calendar, quantile_edges


@pytest.fixture(scope="module")
def raw(clinic_data):
    batch = next(iter(clinic_data.raw("validation", 16)))
    names = schema.raw_features(clinic_data.spec)
    return {name: batch[name] for name in names}


def bucket_of(value, edges):
    if math.isnan(value):
        return 0
    if value == 0:
        return 1
    return 2 + sum(value >= edge for edge in edges)


def test_ids_equal_a_slow_reference(clinic_data, raw):
    preprocessor = clinic_data.preprocessor
    inputs = preprocessor(raw)
    edges = preprocessor.statistics.edges
    names = schema.performance_names(clinic_data.spec)
    ids = inputs["performance_sequence"].numpy()
    values = raw["performance_sequence"].numpy()
    for row in range(len(values)):
        for day in range(0, values.shape[1], 5):
            for index, name in enumerate(names):
                assert ids[row, day, index] == bucket_of(
                    values[row, day, index], edges[name]
                )
    beds = raw["profile_beds"].numpy()
    got = inputs["profile_features"].numpy()[:, 1]
    assert got.tolist() == [bucket_of(x, edges["profile_beds"]) for x in beds]


def test_history_levels_equal_a_slow_reference(clinic_data, raw):
    preprocessor = clinic_data.preprocessor
    inputs = preprocessor(raw)
    levels = inputs["log_history"].numpy()
    dense = inputs["dense_features"].numpy()
    means = preprocessor.statistics.label_means
    names = schema.performance_names(clinic_data.spec)
    values = raw["performance_sequence"].numpy()
    first = len(preprocessor.statistics.dense_mean)
    relative = dense[:, first:].reshape(len(values), len(means), -1)
    assert clinic_data.spec.cross_scenario_totals and relative.shape[2] == 3
    for row in range(len(values)):
        for task, column in enumerate([0, 1, 2]):
            floor = 0.005 * means[task]
            lookback = values[row, :, column].sum() * 7 / 28
            last_week = values[row, -7:, column].sum()
            everywhere = names.index(f"total_{names[column]}")
            totals = [
                lookback,
                (lookback + last_week) / 2,
                values[row, :, everywhere].sum() * 7 / 28,
            ]
            if clinic_data.spec.tasks[task].kind == "binary":
                totals = [min(total, 1.0) for total in totals]
            expected = [math.log(total + floor) for total in totals]
            np.testing.assert_allclose(
                levels[row, task], expected[:2], rtol=1e-4
            )
            expected = [0.3 * (x - math.log(means[task])) for x in expected]
            np.testing.assert_allclose(
                relative[row, task], expected, rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("observed", [3, 7, 20])
def test_levels_of_few_days_are_totals_of_the_horizon(clinic_data, observed):
    """One visit a day is seven in a week, however few days are known."""
    spec = clinic_data.spec
    batch = next(iter(clinic_data.raw("validation", 1)))
    batch = {name: batch[name] for name in schema.raw_features(spec)}
    sequence = np.zeros(batch["performance_sequence"].shape, "float32")
    sequence[:, -observed:] = 1.0
    batch["performance_sequence"] = sequence
    batch["days_observed"] = np.array([observed])
    told = clinic_data.preprocessor(batch)["log_history"].numpy()[0, 0]
    floor = 0.005 * clinic_data.preprocessor.statistics.label_means[0]
    np.testing.assert_allclose(told, np.log(7 + floor), rtol=1e-5)


@given(
    cutoff=st.integers(0, 40_000),
    first=st.integers(10_000, 20_000),
    span=st.integers(0, 500),
)
def test_days_of_the_year_are_those_that_training_has_seen(cutoff, first, span):
    def angle(day):
        return 2 * math.pi * (day % 365.25) / 365.25

    def distance(day, other):
        """Days between two places in the year."""
        apart = abs(day - other) % 365.25
        return min(apart, 365.25 - apart)

    sine, cosine = _calendar([cutoff], first, first + span)[0, 2:].numpy()
    seen = np.arange(first, first + span + 1)
    nearest = min(distance(cutoff, day) for day in seen)
    if nearest < 1:
        place = cutoff
    else:
        ends = (first, first + span)
        place = min(ends, key=lambda day: distance(cutoff, day))
        if abs(distance(cutoff, ends[0]) - distance(cutoff, ends[1])) < 0.01:
            return  # As near to one as to the other.
    assert sine == pytest.approx(math.sin(angle(place)), abs=0.02)
    assert cosine == pytest.approx(math.cos(angle(place)), abs=0.02)


def test_what_is_told_does_not_go_on_growing_after_the_last_training_day(
    clinic_data, raw
):
    statistics = clinic_data.preprocessor.statistics
    last = statistics.training_cutoffs[1]
    days = np.asarray(clinic_data.splits.train)
    start = (clinic_data.spec.start - datetime.date(1970, 1, 1)).days
    assert statistics.training_cutoffs == [start + days[0], start + days[-1]]
    told = [
        clinic_data.preprocessor(raw | {"cutoff": np.full(16, last + later)})
        for later in (0, 7, 70)
    ]
    for later in told[1:]:
        np.testing.assert_allclose(
            later["dense_features"], told[0]["dense_features"], atol=1e-5
        )


def test_levels_of_a_binary_task_are_of_days_not_of_amounts(clinic_data, raw):
    task = Task("paid", "fees", kind="binary")
    spec = dataclasses.replace(clinic_data.spec, tasks=(task,))
    statistics = dataclasses.replace(
        clinic_data.preprocessor.statistics, label_means=[0.5]
    )
    preprocessor = Preprocessor(spec, statistics)
    fees = schema.performance_names(spec).index("fees")
    sequence = raw["performance_sequence"].numpy()
    told = {}
    for unit in (1.0, 1e-4):
        values = sequence.copy()
        values[..., fees] *= unit
        told[unit] = preprocessor(raw | {"performance_sequence": values})
    # In which unit money is told does not matter.
    levels = [np.exp(x["log_history"].numpy()[:, 0]) for x in told.values()]
    np.testing.assert_array_equal(*levels)
    plain = {name: values.numpy() for name, values in raw.items()}
    expected = naive_forecasts(spec, plain)["history_mean"][:, 0]
    np.testing.assert_allclose(levels[0][:, 0], expected + 0.0025, rtol=1e-5)


@pytest.mark.parametrize(
    ("told", "meant"), [(400, 28), (29, 28), (0, 0), (-3, 0), (5, 5)]
)
def test_only_observed_days_count_whatever_a_caller_says(
    clinic_data, raw, told, meant
):
    names = ("behavior_sequence", "performance_sequence", "known_future")
    plain = {name: value.numpy() for name, value in raw.items()}
    cut = {name: plain[name].copy() for name in names}
    for values in cut.values():
        values[:, : max(values.shape[1] - meant, 0)] = 0.0
    cut["days_observed"] = np.full(16, max(meant, 1))
    ours = clinic_data.preprocessor(
        plain | {"days_observed": np.full(16, told)}
    )
    expected = clinic_data.preprocessor(plain | cut)
    for name in ("dense_features", "log_history"):
        np.testing.assert_allclose(ours[name], expected[name], rtol=1e-5)


def test_a_value_called_as_keras_calls_unknown_ones(clinic_data, raw):
    config = clinic_data.preprocessor.get_config()
    vocabularies = config["statistics"]["vocabularies"]
    vocabularies["scenario"] = ["[UNK]", "booked", "walk_in"]
    preprocessor = Preprocessor.from_config(config)
    batch = {name: value[:4] for name, value in raw.items()}
    batch["scenario"] = np.array([b"walk_in", b"[UNK]", b"booked", b"else"])
    ids = preprocessor(batch)["scenario_features"].numpy()[:, 0]
    assert ids.tolist() == [3, 1, 2, 0]
    names = [preprocessor.scenario_names[index] for index in ids]
    assert names == ["walk_in", "[UNK]", "booked", "(unknown)"]
    texts = schema.as_text(batch["scenario"])
    assert preprocessor.scenario_ids(texts).tolist() == ids.tolist()


def test_unknown_values_fall_to_id_zero(clinic_data, raw):
    unknown = dict(raw)
    for name in ("scenario", "scenario_channel", "profile_town"):
        unknown[name] = np.full(16, "never seen", object)
    unknown["profile_beds"] = np.full(16, np.nan, np.float32)
    inputs = clinic_data.preprocessor(unknown)
    assert not inputs["scenario_features"].numpy()[:, :2].any()
    assert not inputs["profile_features"].numpy().any()
    assert np.isfinite(inputs["dense_features"].numpy()).all()


def test_padded_days_are_masked_and_missing(clinic_data, raw):
    padded = dict(raw) | {"days_observed": np.full(16, 5, np.int64)}
    inputs = clinic_data.preprocessor(padded)
    mask = inputs["sequence_mask"].numpy()
    assert mask[:, -5:].all() and not mask[:, :-5].any()
    assert not inputs["behavior_sequence"].numpy()[:, :-5].any()


def test_ids_stay_below_the_sizes_given_to_the_model(clinic_data):
    sizes = clinic_data.preprocessor.model_inputs
    for inputs, _ in clinic_data.test(64):
        for name, limit in (
            ("behavior_sequence", sizes.behavior_sizes),
            ("performance_sequence", sizes.performance_sizes),
            ("scenario_features", sizes.scenario_sizes),
            ("profile_features", sizes.profile_sizes),
            ("known_future", sizes.known_future_sizes),
        ):
            ids = inputs[name].numpy().reshape(-1, len(limit))
            assert (ids.max(0) < np.array(limit)).all(), name


def test_training_features_are_standardised(clinic_data):
    dense = np.concatenate(
        [x["dense_features"].numpy() for x, _ in clinic_data.train(10)]
    )
    # Log levels follow, on a scale of their own.
    dense = dense[:, : len(clinic_data.preprocessor.statistics.dense_mean)]
    assert np.abs(dense.mean(0)).max() < 0.2
    varying = dense.std(0) > 0
    np.testing.assert_allclose(dense.std(0)[varying], 1, atol=0.3)


def test_config_round_trip_gives_the_same_inputs(clinic_data, raw):
    copy = Preprocessor.from_config(clinic_data.preprocessor.get_config())
    for name, tensor in clinic_data.preprocessor(raw).items():
        np.testing.assert_array_equal(tensor, copy(raw)[name])


def test_weights_of_tasks(clinic_data):
    means = clinic_data.preprocessor.statistics.label_means
    weights = clinic_data.preprocessor.task_weights()
    assert weights["visits"] == pytest.approx(1 / means[0])
    assert weights["open"] == 1.0


def test_a_task_without_a_label_in_the_samples_is_refused(tmp_path):
    path = write_clinic_tables(
        tmp_path / "tables",
        days=320,
        lookback=14,
        stride=28,
        known_future=[],
        behavior=["staff"],
    )
    spec = DatasetSpec.load(path)
    # Fees in weeks between the label weeks: in no sample, but in the panel.
    first = windows.make_splits(spec).train[0]
    day = (pl.col("day") - spec.start).dt.total_days() - first
    weeks_apart = (day - 1) % 28 // 7
    panel = pl.read_parquet(spec.panel)
    panel.with_columns(
        fees=pl.when(weeks_apart == 2).then(50.0).otherwise(0.0)
    ).write_parquet(spec.panel)
    with pytest.raises(
        DataValidationError, match=r"fees: is zero in the label days of every"
    ):
        ForecastData.prepare(spec, tmp_path / "data")


def test_units_of_labels(tmp_path):
    spec = DatasetSpec.load(write_clinic_tables(tmp_path / "tables"))
    panel = pl.read_parquet(spec.panel)
    panel.with_columns(pl.col("fees") / 1000).write_parquet(spec.panel)
    preprocessor = ForecastData.prepare(spec, tmp_path / "data").preprocessor
    mean = preprocessor.statistics.label_means[1]
    assert 0 < mean < 2
    assert preprocessor.label_units() == {
        "visits": 1.0,
        "fees": pytest.approx(0.4 * mean),
        "open": 1.0,
    }


def test_limits_of_labels(tmp_path):
    tasks = [
        {"name": "days", "column": "open_days"},
        {"name": "open", "column": "open_days", "kind": "binary"},
        {"name": "visits", "column": "visits"},
    ]
    path = write_clinic_tables(tmp_path / "tables", tasks=tasks, horizon=5)
    data = ForecastData.prepare(DatasetSpec.load(path), tmp_path / "data")
    expected = {"days": 5, "open": 1, "visits": None}
    assert data.preprocessor.label_limits() == expected


def test_nothing_after_the_last_training_day_moves_what_is_fitted(tmp_path):
    spec = DatasetSpec.load(write_clinic_tables(tmp_path / "tables"))
    last = windows.date_of(spec, windows.last_fit_day(spec))
    before = ForecastData.prepare(spec, tmp_path / "before")
    values = [pl.col(name) for name in spec.value_columns]
    changed = pl.read_parquet(spec.panel).with_columns(
        pl.when(pl.col("day") > last).then(value * 50 + 1).otherwise(value)
        for value in values
    )
    changed.write_parquet(spec.panel)
    after = ForecastData.prepare(spec, tmp_path / "after")
    ours, theirs = (
        dataclasses.asdict(data.preprocessor.statistics)
        for data in (before, after)
    )
    assert ours.pop("num_samples") and theirs.pop("num_samples")
    assert ours == theirs


def test_what_is_fitted_does_not_depend_on_the_order_of_rows(tmp_path):
    fitted = []
    for seed in range(3):
        spec = DatasetSpec.load(write_clinic_tables(tmp_path / str(seed)))
        rows = pl.read_parquet(spec.panel).sample(
            fraction=1, shuffle=True, seed=seed
        )
        rows.write_parquet(spec.panel)
        data = ForecastData.prepare(spec, tmp_path / f"records_{seed}")
        fitted.append(data.preprocessor.statistics)
    assert fitted[0] == fitted[1] == fitted[2]


def test_without_held_out_days_all_days_are_fitted_on(clinic_data, all_days):
    ours = all_days.preprocessor.statistics
    held_out = clinic_data.preprocessor.statistics
    spec = all_days.spec
    assert ours.last_day == spec.end.isoformat()
    last = windows.date_of(spec, windows.last_fit_day(spec))
    assert held_out.last_day == last.isoformat() < ours.last_day
    counts = ours.num_samples
    assert counts["validation"] == counts["test"] == 0
    assert counts["train"] > sum(held_out.num_samples.values())
    labels = np.concatenate(
        [batch["labels"] for batch in all_days.raw("train", 64)]
    )
    assert len(labels) == counts["train"]
    np.testing.assert_allclose(ours.label_means, labels.mean(0), rtol=1e-5)
    assert ours.label_means != held_out.label_means


def test_quantile_edges():
    assert quantile_edges(np.zeros(5)) == []
    assert quantile_edges(np.array([0.0, 2.0, 2.0, np.nan])) == []
    edges = quantile_edges(np.arange(10_000, dtype="float64"))
    assert len(edges) == 31 and edges == sorted(set(edges))


@pytest.mark.parametrize(
    ("number", "expected"),
    [(1, [1]), (3, [3]), (5, [2, 3]), (21, [5, 5, 5, 6]), (99, [11] * 9)],
)
def test_few_values_share_few_buckets(number, expected):
    values = np.linspace(0.05, 0.95, number, dtype="float32")
    counts = np.bincount(np.digitize(values, quantile_edges(values)))
    assert counts.tolist() == expected


def test_an_edge_is_a_value_in_float32():
    assert quantile_edges(np.full(50, 0.1)) == []
    edges = quantile_edges(np.array([0.1] * 8 + [0.7] * 8))
    assert edges == [float(np.float32(0.7))]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=200))
def test_no_bucket_is_without_a_value(values):
    values = np.array(values, "float32")
    edges = quantile_edges(values)
    assert set(np.digitize(values, edges)) == set(range(len(edges) + 1))
    assert len(edges) < math.sqrt(len(values))

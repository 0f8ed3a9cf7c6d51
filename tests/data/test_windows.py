import dataclasses
import datetime
import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings, strategies as st

from m2m_tf.config import SplitDates, SplitShares
from m2m_tf.data import panel, schema, windows


@pytest.fixture(scope="module")
def record(clinic_spec):
    return next(panel.iter_records(clinic_spec))


def series_of(spec, *records):
    """Series of records, whose numbers of scenarios may differ."""
    tensors = schema.record_tensors(spec)
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(records),
        output_signature={
            name: tf.TensorSpec(tensor.shape, tensor.dtype)
            for name, tensor in tensors.items()
        },
    )
    return windows.stack_series(
        spec, next(iter(dataset.ragged_batch(len(records))))
    )


def cut(spec, record, cutoffs):
    """Every sample of a record, active or not, scenario by scenario."""
    pairs = itertools.product(range(len(record[schema.VALUES])), cutoffs)
    rows = windows.cut_windows(
        spec, series_of(spec, record), tf.constant(list(pairs))
    )
    return {name: tensor.numpy() for name, tensor in rows.items()}


@pytest.mark.parametrize("days", [10, 60])
def test_latest_windows_are_those_of_the_last_day(clinic_spec, days):
    end = clinic_spec.start + datetime.timedelta(days=days - 1)
    spec = dataclasses.replace(clinic_spec, end=end)
    (grid,) = panel.Grids(spec).read(0, 1000)
    latest = windows.cut_latest(spec, grid)
    assert set(latest) == {*schema.raw_features(spec), schema.ENTITY}
    count = len(grid[schema.SCENARIO])
    for index in range(len(grid[schema.ENTITY])):
        record = {
            name: values if name.startswith("scenario") else values[index]
            for name, values in grid.items()
        }
        expected = cut(spec, record, [spec.num_days - 1])
        rows = slice(index * count, (index + 1) * count)
        for name, tensor in latest.items():
            np.testing.assert_array_equal(tensor[rows], expected[name])


# The last ones have days before the first, which are zeros.
@pytest.mark.parametrize("cutoffs", [[30, 45], [8, 45]])
def test_windows_equal_a_slow_reference(clinic_spec, record, cutoffs):
    spec = clinic_spec
    rows = cut(spec, record, cutoffs)
    names = list(spec.value_columns)
    values = record[schema.VALUES]
    position = 0
    for scenario in range(len(values)):
        for cutoff in cutoffs:
            for age in range(spec.lookback):
                day = cutoff - spec.lookback + 1 + age
                for index, name in enumerate(spec.behavior):
                    column = names.index(name)
                    got = rows["behavior_sequence"][position, age]
                    value = total = 0.0
                    if day >= 0:
                        value = values[scenario, day, column]
                        total = sum(v[day, column] for v in values)
                    assert got[index] == value
                    assert got[len(spec.behavior) + index] == total
            booked = names.index("appointments")
            for ahead in range(spec.horizon):
                day = cutoff - spec.horizon + 1 + ahead
                assert (
                    rows["known_future"][position, ahead, 0]
                    == values[scenario, day, booked]
                )
            for index, task in enumerate(spec.tasks):
                total = 0.0
                for day in range(cutoff + 1, cutoff + spec.horizon + 1):
                    total += float(
                        values[scenario, day, names.index(task.column)]
                    )
                if task.kind == "binary":
                    total = float(total > 0)
                np.testing.assert_allclose(
                    rows["labels"][position, index], total, rtol=1e-5
                )
            assert (
                rows["scenario"][position].decode()
                == (record["scenario"][scenario])
            )
            date = spec.start + datetime.timedelta(days=cutoff)
            epoch = datetime.date(1970, 1, 1)
            assert rows["cutoff"][position] == (date - epoch).days
            position += 1
    assert position == len(rows["labels"])


def test_nothing_after_the_cutoff_reaches_an_input(clinic_spec, record):
    before = cut(clinic_spec, record, [50])
    changed = record[schema.VALUES].copy()
    changed[:, 51:] = np.random.default_rng(0).uniform(
        1, 9, changed[:, 51:].shape
    )
    after = cut(clinic_spec, record | {schema.VALUES: changed}, [50])
    for name in before:
        if name == windows.LABELS:
            assert (before[name] != after[name]).any()
        else:
            np.testing.assert_array_equal(before[name], after[name])


def test_nothing_up_to_the_cutoff_reaches_a_label(clinic_spec, record):
    before = cut(clinic_spec, record, [50])
    changed = record[schema.VALUES].copy()
    changed[:, :51] += 1
    after = cut(clinic_spec, record | {schema.VALUES: changed}, [50])
    np.testing.assert_array_equal(before["labels"], after["labels"])


def test_short_history_is_padded_in_front(clinic_spec, record):
    rows = cut(clinic_spec, record, [9])
    assert (rows["days_observed"] == 10).all()
    padded = clinic_spec.lookback - 10
    assert not rows["performance_sequence"][:, :padded].any()
    np.testing.assert_array_equal(
        rows["performance_sequence"][:, padded:, :3],
        record[schema.VALUES][:, :10, 2:5],
    )


@pytest.fixture(params=["visits", None])
def rare(request, clinic_spec):
    """A spec, and records of so few active days that many windows have none."""
    spec = dataclasses.replace(clinic_spec, activity=request.param)
    records = list(itertools.islice(panel.iter_records(spec), 4))
    rng = np.random.default_rng(0)
    for record in records:
        values = np.zeros_like(record[schema.VALUES])
        values[rng.random(values.shape) < 0.02] = 1
        record[schema.VALUES] = values
    return spec, records


def test_active_samples_equal_a_slow_reference(rare):
    spec, records = rare
    column = spec.value_columns.index("visits")
    cutoffs = [3, 20, 41, 55]
    expected = []
    series = [values for record in records for values in record[schema.VALUES]]
    for index, values in enumerate(series):
        for cutoff in cutoffs:
            if spec.activity:
                first = max(cutoff - spec.lookback + 1, 0)
                seen = values[first : cutoff + 1, column]
            else:
                seen = values[: cutoff + 1]
            if seen.any():
                expected.append([index, cutoff])
    got = windows.active_samples(spec, series_of(spec, *records), cutoffs)
    np.testing.assert_array_equal(got, expected)
    assert 0 < len(expected) < len(series) * len(cutoffs)


def test_nothing_after_the_cutoff_makes_a_sample(rare):
    spec, records = rare
    before = windows.active_samples(spec, series_of(spec, *records), [10])
    for record in records:
        record[schema.VALUES][:, 11:] = 1
    after = windows.active_samples(spec, series_of(spec, *records), [10])
    np.testing.assert_array_equal(before, after)


def test_samples_of_several_records_keep_to_their_own(clinic_spec):
    spec = clinic_spec
    records = list(itertools.islice(panel.iter_records(spec), 3))
    # Rows of entities and of series differ.
    assert len({len(record[schema.SCENARIO]) for record in records}) > 1
    series = series_of(spec, *records)
    order = np.random.default_rng(0).permutation(len(series[schema.VALUES]))
    rows = windows.cut_windows(
        spec, series, tf.constant([[index, 40] for index in order])
    )
    alone = [cut(spec, record, [40]) for record in records]
    for name, tensor in rows.items():
        expected = np.concatenate([each[name] for each in alone])[order]
        np.testing.assert_array_equal(tensor, expected)


def test_splits_of_a_year_of_sundays(clinic_spec):
    spec = dataclasses.replace(
        clinic_spec,
        start=datetime.date(2017, 1, 1),
        end=datetime.date(2017, 12, 31),
        lookback=40,
    )
    splits = windows.make_splits(spec)
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [
        35,
        4,
        5,
    ]
    for name in windows.SPLIT_NAMES:
        for cutoff in getattr(splits, name):
            assert windows.date_of(spec, cutoff).weekday() == 6
    assert windows.date_of(spec, splits.test[-1]) == datetime.date(2017, 12, 24)


@settings(max_examples=200, deadline=None)
@given(
    days=st.integers(60, 500),
    lookback=st.integers(1, 60),
    horizon=st.integers(1, 21),
    stride=st.integers(1, 21),
    share=st.floats(0.2, 0.8),
    dates=st.booleans(),
)
def test_label_periods_of_splits_are_apart(
    clinic_spec, days, lookback, horizon, stride, share, dates
):
    start = clinic_spec.start
    rest = (1 - share) / 2
    split = SplitShares(share, rest, 1 - share - rest)
    if dates:
        first = int(share * days)
        split = SplitDates(
            start + datetime.timedelta(days=first),
            start + datetime.timedelta(days=(first + days) // 2 + 1),
        )
    spec = dataclasses.replace(
        clinic_spec,
        end=start + datetime.timedelta(days=days - 1),
        lookback=lookback,
        horizon=horizon,
        stride=stride,
        known_future=(),
        split=split,
    )
    try:
        splits = windows.make_splits(spec)
    except windows.SplitError:
        return
    previous_end = None
    for name in windows.SPLIT_NAMES:
        cutoffs = getattr(splits, name)
        assert cutoffs[0] - lookback + 1 >= 0
        assert cutoffs[-1] + horizon <= days - 1
        if previous_end is not None:
            gap = cutoffs[0] + 1 - previous_end - 1
            assert gap >= horizon
        previous_end = cutoffs[-1] + horizon


def test_without_held_out_days_all_cutoffs_are_there_to_train_on(clinic_spec):
    splits = windows.hold_nothing_out(clinic_spec)
    last = clinic_spec.num_days - 1
    assert splits.train[-1] + clinic_spec.horizon == last
    assert windows.last_fit_day(clinic_spec, splits) == last
    held_out = windows.make_splits(clinic_spec)
    for name in windows.SPLIT_NAMES:
        assert set(getattr(held_out, name)) < set(splits.train)
    assert splits.validation == splits.test == ()


@pytest.mark.parametrize(
    "make", [windows.make_splits, windows.hold_nothing_out]
)
def test_too_few_days_say_how_many_are_needed(clinic_spec, make):
    spec = dataclasses.replace(
        clinic_spec, end=clinic_spec.start + datetime.timedelta(days=20)
    )
    with pytest.raises(windows.SplitError, match=r"21 days.*= 35\."):
        make(spec)


def test_empty_split_is_named(clinic_spec):
    spec = dataclasses.replace(
        clinic_spec, end=clinic_spec.start + datetime.timedelta(days=60)
    )
    with pytest.raises(windows.SplitError, match="split is empty"):
        windows.make_splits(spec)

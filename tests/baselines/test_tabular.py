import dataclasses

import numpy as np

from m2m_tf.baselines.tabular import fit_vocabularies, tabular_features
from m2m_tf.data import schema


def table_of(spec, raw, vocabularies=None):
    """Dict column → values, for tests that look at one column."""
    if vocabularies is None:
        vocabularies = fit_vocabularies(spec, [raw])
    features, names, _ = tabular_features(spec, raw, vocabularies)
    assert features.dtype == np.float32
    assert features.shape == (len(raw["labels"]), len(names))
    assert len(set(names)) == len(names)
    return dict(zip(names, features.T, strict=True))


def test_totals_and_days(spec, make_raw):
    raw = make_raw(6)
    table = table_of(spec, raw)
    visits = raw[schema.PERFORMANCE_SEQUENCE][:, :, 0]
    staff = raw[schema.BEHAVIOR_SEQUENCE][:, :, 0]
    all_fees = raw[schema.PERFORMANCE_SEQUENCE][:, :, 3]
    booked = raw[schema.KNOWN_FUTURE][:, :, 0]
    expected = {
        "visits_last_3": visits[:, 7] + visits[:, 8] + visits[:, 9],
        "visits_last_10": visits.sum(axis=1),
        "staff_last_7": staff[:, 3:].sum(axis=1),
        "total_fees_last_7": all_fees[:, 3:].sum(axis=1),
        "visits_0_days_ago": visits[:, 9],
        "visits_6_days_ago": visits[:, 3],
        "open_1_days_ago": visits[:, 8] > 0,
        "appointments_in_1_days": booked[:, 0],
        "appointments_sum": booked.sum(axis=1),
        "profile_beds": raw["profile_beds"],
        "visits_log_last_week": np.log(visits[:, 6:].sum(axis=1) + 0.05),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(table[name], values, rtol=1e-5)
    assert "total_fees_last_3" not in table
    assert "visits_last_14" not in table  # The lookback has 10 days.


def test_days_since_activity(spec, make_raw):
    raw = make_raw(3)
    sequence = np.zeros_like(raw[schema.PERFORMANCE_SEQUENCE])
    sequence[0, 9, 0] = 1
    sequence[1, [2, 5], 0] = 1
    sequence[2, 9, 1] = 1  # Fees are not the activity.
    raw[schema.PERFORMANCE_SEQUENCE] = sequence
    table = table_of(spec, raw)
    np.testing.assert_array_equal(table["days_since_activity"], [0, 4, 10])


def test_calendar_of_the_cutoff(spec, make_raw):
    raw = make_raw(2)
    raw[schema.CUTOFF] = np.array(["2025-02-03", "2024-12-31"], "M8[D]")
    table = table_of(spec, raw)
    np.testing.assert_array_equal(table["month"], [2, 12])
    # Days 33 and 365 of their years, counted from 0.
    np.testing.assert_array_equal(table["week_of_year"], [4, 52])


def test_weekdays_where_cutoffs_differ_in_them(spec, make_raw):
    raw = make_raw(3)
    raw[schema.CUTOFF] = raw[schema.CUTOFF] + np.array([0, 1, 7])
    assert "weekday" not in table_of(spec, raw)
    daily = dataclasses.replace(spec, stride=1)
    first, second, third = table_of(daily, raw)["weekday"]
    assert first == third and (first + 1) % 7 == second


def test_unknown_categories_are_zero(spec, make_raw):
    train, raw = make_raw(40), make_raw(3)
    vocabularies = fit_vocabularies(spec, [train, train])
    assert vocabularies["profile_town"] == [b"one", b"three", b"two"]
    raw["profile_town"] = np.array([b"two", b"nowhere", b"one"], object)
    features, names, categorical = tabular_features(spec, raw, vocabularies)
    column = features[:, names.index("profile_town")]
    np.testing.assert_array_equal(column, [3, 0, 1])
    assert categorical == ["scenario", "scenario_channel", "profile_town"]


def test_row_alone_equals_row_in_batch(spec, make_raw):
    raw = make_raw(8)
    vocabularies = fit_vocabularies(spec, [raw])
    alone = {name: values[3:4] for name, values in raw.items()}
    whole, _, _ = tabular_features(spec, raw, vocabularies)
    row, _, _ = tabular_features(spec, alone, vocabularies)
    np.testing.assert_array_equal(row[0], whole[3])


def test_labels_are_not_features(spec, make_raw):
    raw = make_raw(8)
    before = table_of(spec, raw)
    raw["labels"] = raw["labels"] + 1000
    for name, values in table_of(spec, raw).items():
        np.testing.assert_array_equal(values, before[name])

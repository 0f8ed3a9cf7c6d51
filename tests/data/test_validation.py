import dataclasses
import datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings, strategies as st
from spoilt_tables import (
    ATTRIBUTES,
    by_kind,
    in_parts_unlike_each_other,
    set_rows,
    with_attribute,
    with_panel,
)
from tables import write_clinic_tables

from m2m_tf.config import DatasetSpec, ModelSettings
from m2m_tf.data import panel, validation
from m2m_tf.data.dataset import ForecastData
from m2m_tf.models import build_model


def problems_of(spec):
    with pytest.raises(validation.DataValidationError) as caught:
        validation.validate_tables(spec)
    return caught.value.problems


def test_valid_tables_are_summed_up(clinic_spec, source):
    summary = validation.validate_tables(clinic_spec)
    assert summary.entities == source["clinic"].n_unique()
    assert summary.panel_rows == source.height
    assert "12 entities, 3 scenarios" in str(summary)


def test_what_is_wrong_with_a_part_of_a_folder(clinic_spec, source, tmp_path):
    folder = tmp_path / "panel"
    in_parts_unlike_each_other(source, folder)
    spec = dataclasses.replace(clinic_spec, panel=folder)
    rows = pl.read_parquet(folder / "b.parquet")
    rows.drop("fees").write_parquet(folder / "b.parquet")
    (problem,) = problems_of(spec)
    assert (problem.file, problem.column) == ("panel", "fees")
    assert "is missing in a file of the folder" in problem.message
    assert problem.example == "1 such, the first b.parquet"
    with (folder / "a.csv").open("a") as file:
        file.write("a,b,2025-03-01,1,1,1,1,5,1,1,1\n")
    with pytest.raises(ValueError, match=r"panel/a\.csv: cannot be read"):
        validation.validate_tables(spec)
    (folder / "a.csv").unlink()
    (folder / "b.parquet").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"panel/b\.parquet: cannot be read"):
        validation.validate_tables(spec)
    (folder / "b.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"panel: the folder holds no"):
        validation.validate_tables(spec)


def test_a_partition_of_null_is_an_empty_id(clinic_spec, source, tmp_path):
    folder = tmp_path / "panel"
    by_kind(source, folder)
    (folder / "visit_kind=video").rename(
        folder / "visit_kind=__HIVE_DEFAULT_PARTITION__"
    )
    (problem,) = problems_of(dataclasses.replace(clinic_spec, panel=folder))
    assert (problem.column, problem.message) == ("visit_kind", "has empty ids")


CASES = {
    "missing column": (
        lambda f: f.drop("fees"),
        "fees",
        0,
        "is missing; add it",
    ),
    "NaN": (
        lambda f: set_rows(f, "fees", float("nan"), 3),
        "fees",
        3,
        "missing values; write 0",
    ),
    "infinite": (
        lambda f: set_rows(f, "staff", float("inf"), 2),
        "staff",
        2,
        "infinite or beyond 1e+30",
    ),
    "too large for float32": (
        lambda f: set_rows(f, "fees", 1e60, 2),
        "fees",
        2,
        "beyond 1e+30",
    ),
    "lists": (
        lambda f: f.with_columns(pl.concat_list("clinic")),
        "clinic",
        0,
        "write one value a row",
    ),
    "lists of numbers": (
        lambda f: f.with_columns(pl.concat_list("fees")),
        "fees",
        0,
        "write numbers",
    ),
    "dates as numbers": (
        lambda f: f.with_columns(fees=pl.col("day")),
        "fees",
        0,
        "write numbers",
    ),
    "days since 1970": (
        lambda f: f.with_columns(pl.col("day").to_physical()),
        "day",
        2818,
        "not written YYYY-MM-DD",
    ),
    "numbers as dates": (
        lambda f: f.with_columns(pl.col("day").to_physical().cast(float)),
        "day",
        0,
        "days as YYYY-MM-DD",
    ),
    "null": (
        lambda f: set_rows(f, "staff", None),
        "staff",
        1,
        "missing values",
    ),
    "negative label": (
        lambda f: set_rows(f, "visits", -2.0),
        "visits",
        1,
        "must not be negative",
    ),
    "duplicate key": (
        lambda f: pl.concat([f, f.head(4)]),
        "(clinic, visit_kind, day)",
        4,
        "more than one row",
    ),
    "instants with a zone": (
        lambda f: f.with_columns(pl.col("day").cast(pl.Datetime("us", "UTC"))),
        "day",
        None,
        "local trading day",
    ),
    "times of day": (
        lambda f: f.with_columns(
            pl.col("day").cast(pl.Datetime) + pl.duration(hours=3)
        ),
        "day",
        None,
        "local trading day",
    ),
    "dates outside": (
        lambda f: set_rows(f, "day", pl.date(2030, 1, 1), 5),
        "day",
        5,
        "dates outside",
    ),
    "unlisted scenario": (
        lambda f: set_rows(f, "visit_kind", pl.lit("phone"), 2),
        "visit_kind",
        2,
        "scenarios.parquet does not list",
    ),
    "unlisted entity": (
        lambda f: set_rows(f, "clinic", pl.lit("nobody"), 2),
        "clinic",
        2,
        "profile.csv does not list",
    ),
    "empty id": (
        lambda f: set_rows(f, "clinic", pl.lit("")),
        "clinic",
        1,
        "empty ids",
    ),
    "name of unknown scenarios": (
        lambda f: set_rows(f, "visit_kind", pl.lit("(unknown)"), 2),
        "visit_kind",
        2,
        "give this one another",
    ),
    "task in too large a unit": (
        lambda f: f.with_columns(pl.col("fees") * 1e-9),
        "fees",
        0,
        "in a smaller unit",
    ),
    "task never positive": (
        lambda f: f.with_columns(fees=pl.lit(0.0)),
        "fees",
        0,
        "zero on every training label day",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_problem_is_reported_with_place(clinic_spec, source, tmp_path, case):
    change, column, count, message = CASES[case]
    spec = with_panel(clinic_spec, tmp_path, change(source))
    found = [p for p in problems_of(spec) if message in p.message]
    assert [p.column for p in found] == [column]
    assert found[0].file == "panel.parquet" and found[0].example
    if count is not None:
        assert found[0].count == count


def test_ids_and_categories_that_are_nan_are_missing(
    clinic_spec, source, tmp_path
):
    def numbered(frame):
        number = pl.col("clinic").str.slice(-3).cast(pl.Float64)
        return frame.with_columns(
            clinic=pl.when(number == 2).then(float("nan")).otherwise(number)
        )

    spec = with_panel(clinic_spec, tmp_path, numbered(source))
    profile = pl.read_csv(clinic_spec.profile).with_columns(
        town=pl.when(pl.col("beds") > 2).then(pl.col("beds")).otherwise(np.nan)
    )
    spec = dataclasses.replace(spec, profile=tmp_path / "profile.parquet")
    numbered(profile).write_parquet(spec.profile)
    found = {(p.file, p.message) for p in problems_of(spec)}
    assert found == {
        ("panel.parquet", "has empty ids"),
        ("profile.parquet", "has empty ids"),
    }
    assert set(panel.read_profile(spec)["town"]) == {"", "3.0", "4.0"}


def test_a_column_twice_and_an_attribute_without_a_value(tmp_path):
    spec = DatasetSpec.load(write_clinic_tables(tmp_path))
    profile = pl.read_csv(spec.profile).with_columns(beds=pl.lit(None))
    lines = profile.write_csv().splitlines()
    # As where rows have fewer fields than the header.
    rows = [",".join(line.split(",")[:2]) for line in lines[1:]]
    spec.profile.write_text("\n".join([lines[0], *rows]))
    told = str(validation.validate_tables(spec))
    assert told.endswith("\nmind: no row of profile.csv has a value of beds")
    spec.profile.write_text(
        "\n".join([f"{lines[0]},town", *(f"{row},1,south" for row in rows)])
    )
    (problem,) = problems_of(spec)
    assert problem.column == "town"
    assert "stands in the header twice" in problem.message


def test_unparseable_dates_of_a_csv(clinic_spec, source, tmp_path):
    frame = source.with_columns(pl.col("day").cast(pl.String))
    frame = set_rows(frame, "day", pl.lit("31/12/2025"), 2)
    spec = with_panel(clinic_spec, tmp_path, frame, "panel.csv")
    (problem,) = problems_of(spec)
    assert (problem.column, problem.count) == ("day", 2)
    assert problem.example == "31/12/2025"


def test_numbers_that_are_words_in_a_csv(clinic_spec, source, tmp_path):
    frame = source.with_columns(pl.col("staff").cast(pl.String))
    frame = set_rows(frame, "staff", pl.lit("many"))
    spec = with_panel(clinic_spec, tmp_path, frame, "panel.csv")
    (problem,) = problems_of(spec)
    assert (problem.column, problem.example) == ("staff", "many")


def test_duplicate_profile_and_scenario_ids(tmp_path):
    spec = DatasetSpec.load(write_clinic_tables(tmp_path))
    profile = pl.read_csv(spec.profile)
    pl.concat([profile, profile.head(2)]).write_csv(spec.profile)
    scenarios = pl.read_parquet(spec.scenarios)
    pl.concat([scenarios, scenarios.head(1)]).write_parquet(spec.scenarios)
    found = {p.file: (p.column, p.count) for p in problems_of(spec)}
    assert found == {
        "profile.csv": ("clinic", 2),
        "scenarios.parquet": ("visit_kind", 1),
    }


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("panel.csv", b""),
        ("panel.parquet", b"no such thing"),
        ("panel.csv", b'\n"not closed,b'),
        ("panel.csv", b"\n\xff\xfe\n"),
        # More fields than the header: a decimal comma, perhaps.
        ("panel.csv", b"\na,b,2025-03-01,1,1,1,1,5,1,1,1\n"),
    ],
)
def test_a_broken_file_is_named(clinic_spec, tmp_path, name, content):
    path = tmp_path / name
    if content.startswith(b"\n"):
        header = ",".join(pl.read_parquet_schema(clinic_spec.panel))
        content = header.encode() + content
    path.write_bytes(content)
    spec = dataclasses.replace(clinic_spec, panel=path)
    with pytest.raises(ValueError, match=f"{name}: cannot be read as a"):
        validation.validate_tables(spec)


def test_problems_of_all_tables_come_together(tmp_path, source):
    spec = DatasetSpec.load(write_clinic_tables(tmp_path))
    frame = set_rows(source, "fees", float("nan"))
    set_rows(frame, "visits", -1.0).write_parquet(spec.panel)
    pl.read_csv(spec.profile).drop("town").write_csv(spec.profile)
    found = {(p.file, p.column) for p in problems_of(spec)}
    assert found == {
        ("panel.parquet", "fees"),
        ("panel.parquet", "visits"),
        ("profile.csv", "town"),
    }


def test_absent_table_and_unknown_ending(clinic_spec, tmp_path):
    spec = dataclasses.replace(clinic_spec, panel=tmp_path / "no.parquet")
    with pytest.raises(FileNotFoundError, match="there is no such table"):
        validation.validate_tables(spec)
    (tmp_path / "panel.xlsx").write_text("x")
    spec = dataclasses.replace(clinic_spec, panel=tmp_path / "panel.xlsx")
    with pytest.raises(ValueError, match=r"\.parquet or \.csv"):
        validation.validate_tables(spec)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_single_damage_is_found(
    clinic_spec, source, data, tmp_path_factory
):
    column = data.draw(st.sampled_from(["staff", "fees", "visits"]))
    bad = data.draw(
        st.sampled_from([float("nan"), float("inf"), -float("inf"), None])
    )
    row = data.draw(st.integers(0, source.height - 1))
    frame = source.with_columns(
        pl.when(pl.int_range(pl.len()) == row)
        .then(pl.lit(bad, pl.Float64))
        .otherwise(pl.col(column))
        .alias(column)
    )
    spec = with_panel(clinic_spec, tmp_path_factory.mktemp("bad"), frame)
    found = problems_of(spec)
    assert {p.column for p in found} == {column}
    assert all(p.count == 1 for p in found)


@pytest.mark.parametrize("value", [float("inf"), -2e30, pl.lit("many")])
@pytest.mark.parametrize("table", ATTRIBUTES)
def test_attributes_that_are_no_numbers(tmp_path, table, value):
    spec = DatasetSpec.load(write_clinic_tables(tmp_path))
    name = ATTRIBUTES[table]
    (problem,) = problems_of(with_attribute(spec, table, name, value, ".csv"))
    assert (problem.column, problem.count) == (name, 1)
    told = "no numbers" if isinstance(value, pl.Expr) else "beyond 1e+30"
    assert told in problem.message


@pytest.mark.parametrize("table", ["profile", "scenarios"])
def test_attributes_that_are_lists(tmp_path, table):
    spec = DatasetSpec.load(write_clinic_tables(tmp_path))
    name = {"profile": "town", "scenarios": "channel"}[table]
    frame = panel.scan_table(getattr(spec, table)).collect()
    path = tmp_path / f"other_{table}.parquet"
    frame.with_columns(pl.concat_list(name)).write_parquet(path)
    (problem,) = problems_of(dataclasses.replace(spec, **{table: path}))
    assert (problem.file, problem.column) == (path.name, name)
    assert "write one value a row (type: List(String))" in str(problem)


def test_message_counts_the_problems_and_lists_them():
    problem = validation.Problem("panel.csv", "day", 3, "is empty", "''")
    for problems, count in (
        ([problem], "1 place"),
        ([problem] * 2, "2 places"),
    ):
        first, *lines = str(validation.DataValidationError(problems)).split(
            "\n"
        )
        assert first == f"The tables break the data contract in {count}:"
        assert lines == [f"  {problem}" for problem in problems]


def test_a_folder_with_other_files_is_refused(tmp_path):
    spec = write_clinic_tables(tmp_path)
    rows = pl.read_parquet(tmp_path / "panel.parquet")
    (tmp_path / "panel.parquet").unlink()
    folder = tmp_path / "panel.parquet"
    folder.mkdir()
    rows[:-1].write_parquet(folder / "a.parquet")
    (folder / "_SUCCESS").touch()
    (folder / ".a.parquet.crc").touch()
    validation.validate_tables(DatasetSpec.load(spec))
    for name in ("b.csv.gz", "b.PARQUET"):
        (folder / name).touch()
        with pytest.raises(ValueError, match=f"1 of its files .*{name}"):
            validation.validate_tables(DatasetSpec.load(spec))
        (folder / name).unlink()


@pytest.mark.parametrize("days", [2, 7])
def test_days_without_rows_before_the_end_are_told(tmp_path, days):
    spec = DatasetSpec.load(write_clinic_tables(tmp_path))
    last = spec.end - datetime.timedelta(days=days)
    rows = pl.read_parquet(spec.panel).filter(pl.col("day") <= last)
    rows.write_parquet(spec.panel)
    if days < spec.horizon:
        told = str(validation.validate_tables(spec))
        assert f"mind: no row is newer than {last}" in told
    else:
        message = f"no row in the 7 days up to `end`.*newest: {last}"
        with pytest.raises(validation.DataValidationError, match=message):
            validation.validate_tables(spec)


def concerns_of(spec, tmp_path, frame, name="panel.parquet"):
    return validation.validate_tables(
        with_panel(spec, tmp_path, frame, name)
    ).concerns


def test_days_without_rows_after_the_start_are_refused(clinic_spec):
    early = dataclasses.replace(clinic_spec, start=datetime.date(2025, 2, 22))
    (problem,) = problems_of(early)
    assert "no row in the 7 days from `start`" in problem.message
    assert problem.example == "oldest: 2025-03-01"
    early = dataclasses.replace(early, start=datetime.date(2025, 2, 23))
    assert not validation.validate_tables(early).concerns


@pytest.mark.parametrize("stray", ["9999-12-31", "2026-06-28"])
def test_a_stray_day_far_from_all_others_is_refused(
    clinic_spec, source, tmp_path, stray
):
    stray = datetime.date.fromisoformat(stray)
    frame = pl.concat([source, source.tail(1).with_columns(day=stray)])
    spec = dataclasses.replace(clinic_spec, end=stray)
    (problem,) = problems_of(with_panel(spec, tmp_path, frame))
    assert "no row in most of the days" in problem.message
    assert problem.example == f"none between 2025-06-28 and {stray}"


def test_days_that_were_not_loaded_are_told(clinic_spec, source, tmp_path):
    """Clinics are shut on Sundays, which is as usual."""
    day = pl.col("day")
    of_last = day == datetime.date(2025, 6, 28)
    gone = day.is_between(
        datetime.date(2025, 5, 11), datetime.date(2025, 5, 18)
    )
    assert not concerns_of(clinic_spec, tmp_path, source)
    few = source.filter(~gone & (~of_last | (pl.int_range(pl.len()) % 7 == 0)))
    left = few.filter(of_last).height
    assert 0 < left < 9
    (concern,) = concerns_of(clinic_spec, tmp_path, few)
    assert concern.startswith(
        "7 days have far fewer rows than is usual on the weekday: 2025-05-12 "
        f"(0, usually 27), 2025-06-28 ({left}, usually 27); "
    )
    (concern,) = concerns_of(clinic_spec, tmp_path, source.filter(~of_last))
    assert concern.startswith("no row is newer than 2025-06-27")


def test_a_table_of_weeks_is_told(clinic_spec, source, tmp_path):
    frame = source.filter(pl.col("day").dt.weekday() == 1)
    spec = dataclasses.replace(
        clinic_spec, start=datetime.date(2025, 3, 3), stride=1
    )
    late, weeks = concerns_of(spec, tmp_path, frame)
    assert "no row is newer than 2025-06-23" in late
    assert "only 17 of 113 days have rows" in weeks


def test_a_value_out_of_all_proportion_is_told(clinic_spec, source, tmp_path):
    row = source.row(5, named=True)
    frame = source.with_columns(
        pl.when(pl.int_range(pl.len()) == 5)
        .then(999_999_999)
        .otherwise(pl.col("visits"))
        .alias("visits")
    )
    (concern,) = concerns_of(clinic_spec, tmp_path, frame)
    place = f"({row['clinic']}, {row['visit_kind']}, {row['day']})"
    assert concern.startswith(f"visits is 1,000,000,000 at {place}, and its ")
    # A column that is hardly ever anything has no usual size.
    rare = source.with_columns(
        fees=pl.when(pl.int_range(pl.len()) % 400 == 5)
        .then(10.0 ** (pl.int_range(pl.len()) / 300))
        .otherwise(0.0)
    )
    assert not concerns_of(clinic_spec, tmp_path, rare)


@pytest.mark.parametrize(
    "other", ["Video", "video ", " VIDEO", pytest.param("vidéo", id="none")]
)
def test_ids_written_in_several_ways_are_told(
    clinic_spec, source, tmp_path, other
):
    late = pl.col("day") > datetime.date(2025, 5, 1)
    kind = pl.col("visit_kind")
    frame = source.with_columns(
        pl.when(late & (kind == "video"))
        .then(pl.lit(other))
        .otherwise(kind)
        .alias("visit_kind")
    )
    spec = dataclasses.replace(clinic_spec, scenarios=None, scenario_columns={})
    told = concerns_of(spec, tmp_path, frame)
    if other == "vidéo":
        assert not told
        return
    assert len(told) == 1
    assert told[0].startswith("1 of visit_kind's ids are written in several")
    assert repr(other) in told[0] and "'video'" in told[0]


def test_zeros_in_front_and_blank_ids(clinic_spec, source, tmp_path):
    number = pl.col("clinic").str.slice(-2).cast(int).cast(str)
    half = pl.col("day") > datetime.date(2025, 5, 1)
    frame = source.with_columns(
        clinic=pl.when(half).then(number).otherwise("00" + number)
    )
    spec = dataclasses.replace(clinic_spec, profile=None, profile_columns={})
    (concern,) = concerns_of(spec, tmp_path, frame)
    assert "12 of clinic's ids" in concern and "'0' and '000'" in concern
    blank = set_rows(source, "clinic", pl.lit("  "))
    (problem,) = problems_of(with_panel(spec, tmp_path, blank))
    assert (problem.message, problem.example) == ("has empty ids", "'  '")


@pytest.mark.parametrize(
    "day, name",
    [
        (pl.col("day").dt.strftime("%Y%m%d"), "panel.csv"),
        (pl.col("day").dt.strftime("%Y%m%d").cast(pl.Int32), "panel.parquet"),
        (pl.col("day").dt.strftime("%F 00:00:00"), "panel.csv"),
        (pl.col("day").dt.strftime("%FT00:00:00.000"), "panel.parquet"),
    ],
)
def test_days_may_be_written_as_warehouses_do(
    clinic_spec, source, tmp_path, day, name
):
    spec = with_panel(clinic_spec, tmp_path, source.with_columns(day), name)
    assert validation.validate_tables(spec) == validation.validate_tables(
        clinic_spec
    )


@pytest.mark.parametrize("written", ["%y-%m-%d", "%F 05:00:00", "%d/%m/%Y"])
def test_days_written_otherwise(clinic_spec, source, tmp_path, written):
    frame = source.with_columns(pl.col("day").dt.strftime(written))
    (problem,) = problems_of(with_panel(clinic_spec, tmp_path, frame, "p.csv"))
    assert "not written YYYY-MM-DD" in problem.message
    assert problem.count == source.height


def test_a_column_that_is_written_otherwise_is_named(
    clinic_spec, source, tmp_path
):
    frame = source.rename({"fees": " Fees"})
    (problem,) = problems_of(with_panel(clinic_spec, tmp_path, frame))
    assert (problem.column, problem.example) == ("fees", "there is ' Fees'")


def test_a_part_with_other_signs_between_fields_is_named(
    clinic_spec, source, tmp_path
):
    folder = tmp_path / "panel"
    in_parts_unlike_each_other(source, folder)
    text = (folder / "a.csv").read_text()
    (folder / "a.csv").write_text(text.replace(",", ";"))
    spec = dataclasses.replace(clinic_spec, panel=folder)
    (problem,) = problems_of(spec)
    assert problem.file == "panel/a.csv"
    assert problem.message.startswith("is one column of several")


def test_a_table_without_a_row_is_said_to_be_one(clinic_spec, source, tmp_path):
    (problem,) = problems_of(with_panel(clinic_spec, tmp_path, source.clear()))
    assert "the table has no row" in problem.message


def test_parts_of_several_types_are_said_to_be_so(
    clinic_spec, source, tmp_path
):
    folder = tmp_path / "panel"
    folder.mkdir()
    for zone in ("UTC", "Europe/Paris"):
        source.with_columns(
            pl.col("day").cast(pl.Datetime("us", zone))
        ).write_parquet(folder / f"{zone[:2]}.parquet")
    spec = dataclasses.replace(clinic_spec, panel=folder)
    with pytest.raises(ValueError, match="column of one type in all. Rec"):
        validation.validate_tables(spec)


def test_later_rows_are_passed_over_if_asked(clinic_spec, source, tmp_path):
    end = datetime.date(2025, 6, 14)
    earlier = clinic_spec.until(end)
    (problem,) = problems_of(earlier)
    assert "dates outside" in problem.message
    summary = validation.validate_tables(earlier, later_rows=True)
    assert (summary.last_day, summary.concerns) == (end, ())
    assert summary.panel_rows == source.filter(pl.col("day") <= end).height
    # Nothing newer is looked at; what is older than `start` is.
    day, fees = pl.col("day"), pl.col("fees")
    spoilt = source.with_columns(
        pl.when(day > end).then(-1.0).otherwise(fees).alias("fees")
    )
    spoilt = with_panel(earlier, tmp_path, spoilt)
    assert validation.validate_tables(spoilt, later_rows=True) == summary
    before = set_rows(source, "day", pl.date(2025, 2, 1))
    with pytest.raises(validation.DataValidationError, match="dates outside"):
        validation.validate_tables(
            with_panel(earlier, tmp_path, before), later_rows=True
        )


def test_an_attribute_that_nobody_has(tmp_path):
    spec = DatasetSpec.load(write_clinic_tables(tmp_path))
    profile = pl.read_csv(spec.profile).with_columns(town=pl.lit(None))
    profile.write_csv(spec.profile)
    data = ForecastData.prepare(spec, tmp_path / "records")
    inputs, _ = next(iter(data.train(8)))
    sizes = data.preprocessor.model_inputs
    model = build_model(sizes, ModelSettings(view_dim=4, knowledge_dim=4))
    assert sizes.profile_sizes[0] == 1
    assert np.isfinite(model(inputs)["visits"]).all()

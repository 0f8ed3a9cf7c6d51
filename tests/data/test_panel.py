import dataclasses
import datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings, strategies as st
from tables import write_clinic_tables

from m2m_tf.config import DatasetSpec, ModelSettings
from m2m_tf.data import panel
from m2m_tf.data.dataset import ForecastData
from m2m_tf.models import build_model


@pytest.fixture(scope="module")
def source(clinic_spec):
    return pl.read_parquet(clinic_spec.panel)


def with_panel(spec, tmp_path, frame, name="panel.parquet"):
    path = tmp_path / name
    frame.write_csv(path) if name.endswith("csv") else frame.write_parquet(path)
    return dataclasses.replace(spec, panel=path)


def problems_of(spec):
    with pytest.raises(panel.DataValidationError) as caught:
        panel.validate_tables(spec)
    return caught.value.problems


def set_rows(frame, column, value, count=1):
    rows = pl.int_range(pl.len()) < count
    return frame.with_columns(
        pl.when(rows).then(value).otherwise(pl.col(column)).alias(column)
    )


def test_valid_tables_are_summed_up(clinic_spec, source):
    summary = panel.validate_tables(clinic_spec)
    assert summary.entities == source["clinic"].n_unique()
    assert summary.panel_rows == source.height
    assert "12 entities, 3 scenarios" in str(summary)


def test_csv_gives_the_same_records(clinic_spec, source, tmp_path):
    spec = with_panel(clinic_spec, tmp_path, source, "panel.csv")
    panel.validate_tables(spec)
    for ours, theirs in zip(
        panel.iter_records(spec), panel.iter_records(clinic_spec), strict=True
    ):
        np.testing.assert_allclose(ours["values"], theirs["values"], rtol=1e-6)


def by_day(frame, folder):
    """As Hive and Spark write it: the day is a folder's name."""
    for (day,), rows in frame.partition_by("day", as_dict=True).items():
        part = folder / f"day={day}" / "part-0.parquet"
        part.parent.mkdir(parents=True)
        rows.drop("day").write_parquet(part)
    (folder / "_SUCCESS").touch()
    (part.parent / "_old.parquet").write_bytes(b"passed over")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "part.csv").touch()


def by_kind(frame, folder):
    """CSV, the kind of visit is a folder's name and has other letters."""
    for (kind,), rows in frame.partition_by("visit_kind", as_dict=True).items():
        part = folder / f"visit_kind={kind.replace('_', '%5F')}" / "a.csv"
        part.parent.mkdir(parents=True)
        rows.drop("visit_kind").write_csv(part)


def in_parts_unlike_each_other(frame, folder):
    """Files of both kinds, other orders and types, a column too many."""
    folder.mkdir()
    half = frame.height // 2
    other = frame[half:].select(sorted(frame.columns)).with_columns(more=1)
    frame[:half].write_csv(folder / "a.csv")
    other.with_columns(pl.col("open_days").cast(pl.Int8)).write_parquet(
        folder / "b.parquet"
    )


@pytest.mark.parametrize("write", [by_day, by_kind, in_parts_unlike_each_other])
def test_a_folder_gives_the_same_records(clinic_spec, source, tmp_path, write):
    folder = tmp_path / "panel[1]"
    write(source, folder)
    spec = dataclasses.replace(clinic_spec, panel=folder)
    assert panel.validate_tables(spec) == panel.validate_tables(clinic_spec)
    assert panel.newest_days(spec) == panel.newest_days(clinic_spec)
    for ours, theirs in zip(
        panel.iter_records(spec), panel.iter_records(clinic_spec), strict=True
    ):
        assert list(ours["scenario"]) == list(theirs["scenario"])
        np.testing.assert_allclose(ours["values"], theirs["values"], rtol=1e-6)


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
        panel.validate_tables(spec)
    (folder / "a.csv").unlink()
    (folder / "b.parquet").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"panel/b\.parquet: cannot be read"):
        panel.validate_tables(spec)
    (folder / "b.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"panel: the folder holds no"):
        panel.validate_tables(spec)


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
        "NaN, infinite",
    ),
    "infinite": (
        lambda f: set_rows(f, "staff", float("inf"), 2),
        "staff",
        2,
        "NaN, infinite",
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
    "numbers as dates": (
        lambda f: f.with_columns(
            pl.col("day").dt.to_string("%Y%m%d").cast(pl.Int32)
        ),
        "day",
        0,
        "days as YYYY-MM-DD",
    ),
    "null": (lambda f: set_rows(f, "staff", None), "staff", 1, "missing"),
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
    told = str(panel.validate_tables(spec))
    assert told.endswith("\nmind: no row of profile.csv has a value of beds")
    spec.profile.write_text(
        "\n".join([f"{lines[0]},town", *(f"{row},1,south" for row in rows)])
    )
    (problem,) = problems_of(spec)
    assert problem.column == "town"
    assert "stands in the header twice" in problem.message


@pytest.mark.parametrize("name", ["_day", "_number", "_part", "_file", "len"])
def test_a_column_may_be_called_as_one_might_call_a_helper(
    clinic_spec, source, tmp_path, name
):
    folder = tmp_path / "panel"
    in_parts_unlike_each_other(source.rename({"staff": name}), folder)
    spec = dataclasses.replace(
        clinic_spec, panel=folder, behavior=(name, "open_hours")
    )
    panel.validate_tables(spec)
    for ours, theirs in zip(
        panel.iter_records(spec, chunk_rows=1000, scratch=tmp_path / "a[1]"),
        panel.iter_records(clinic_spec, chunk_rows=1000),
        strict=True,
    ):
        np.testing.assert_array_equal(ours["values"], theirs["values"])
    ours, theirs = (
        next(panel.Grids(s).read(0, 100)) for s in (spec, clinic_spec)
    )
    np.testing.assert_array_equal(ours["values"], theirs["values"])


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
        panel.validate_tables(spec)


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
        panel.validate_tables(spec)
    (tmp_path / "panel.xlsx").write_text("x")
    spec = dataclasses.replace(clinic_spec, panel=tmp_path / "panel.xlsx")
    with pytest.raises(ValueError, match=r"\.parquet or \.csv"):
        panel.validate_tables(spec)


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


def test_records_hold_every_panel_value_once(clinic_spec, source):
    records = list(panel.iter_records(clinic_spec))
    assert sum(len(r["scenario"]) for r in records) == (
        source.select("clinic", "visit_kind").n_unique()
    )
    for index, name in enumerate(clinic_spec.value_columns):
        total = sum(float(r["values"][:, :, index].sum()) for r in records)
        assert total == pytest.approx(source[name].sum(), rel=1e-5)


@pytest.mark.parametrize("chunk_rows", [300, 30])
def test_chunks_do_not_change_the_records(clinic_spec, tmp_path, chunk_rows):
    def by_entity(**kwargs):
        return {
            r["entity"]: r["values"]
            for r in panel.iter_records(clinic_spec, **kwargs)
        }

    whole = by_entity()
    parts = by_entity(chunk_rows=chunk_rows, scratch=tmp_path)
    # Nothing is left of the copy that was dealt.
    assert not list(tmp_path.iterdir())
    assert whole.keys() == parts.keys()
    for entity, values in whole.items():
        np.testing.assert_array_equal(values, parts[entity])


def test_who_begins_beside_another_leaves_its_copy_alone(clinic_spec, tmp_path):
    def begin():
        grids = panel.Grids(clinic_spec, chunk_rows=300, scratch=tmp_path)
        assert grids.num_chunks > 1
        for chunk in range(grids.num_chunks):
            yield [grid["values"] for grid in grids.read(chunk, 1000)]

    expected = list(begin())
    ours = begin()
    told = [next(ours)]
    panel.Grids(clinic_spec, chunk_rows=300, scratch=tmp_path)
    np.testing.assert_equal([*told, *ours], expected)


def test_grids_hold_all_pairs_and_the_records_values(clinic_spec):
    records = {r["entity"]: r for r in panel.iter_records(clinic_spec)}
    grids = panel.Grids(clinic_spec, chunk_rows=300)
    assert grids.num_chunks > 1
    seen = set()
    for chunk in range(grids.num_chunks):
        for grid in grids.read(chunk, 6):
            names = list(grid["scenario"])
            assert len(names) == 3 and len(grid["entity"]) <= 2
            for index, entity in enumerate(grid["entity"]):
                assert entity not in seen
                seen.add(entity)
                values = grid["values"][index]
                record = records.get(entity)
                if record is None:
                    assert not values.any()
                    continue
                for number, name in enumerate(names):
                    own = list(record["scenario"])
                    expected = np.zeros_like(values[0])
                    if name in own:
                        position = own.index(name)
                        expected = record["values"][position]
                        for key in record:
                            if key.startswith("scenario_"):
                                assert_same(
                                    record[key][position], grid[key][number]
                                )
                    np.testing.assert_array_equal(values[number], expected)
                for key in record:
                    if key.startswith("profile_"):
                        assert_same(record[key], grid[key][index])
    assert len(seen) == 12
    assert grids.num_pairs == 3 * len(seen)


def assert_same(one, other):
    assert one == other or (one != one and other != other)


@pytest.mark.parametrize(
    "dtype",
    [pl.Decimal(20, 6), pl.Float32, pl.String, pl.Int64, pl.Int128, pl.UInt8],
)
def test_numbers_of_any_type_are_read(clinic_spec, source, tmp_path, dtype):
    source = source.with_columns(pl.col("visits").clip(0, 200))
    frame = source.with_columns(pl.col("visits").cast(dtype))
    spec = with_panel(clinic_spec, tmp_path, frame)
    panel.validate_tables(spec)
    ours = panel.read_panel(spec).select("visits").collect()
    assert ours["visits"].to_list() == source["visits"].to_list()


@pytest.mark.parametrize(
    "dtype", [pl.Categorical, pl.Enum(["booked", "video", "walk_in"])]
)
def test_categories_are_read_as_text(clinic_spec, source, tmp_path, dtype):
    frame = source.with_columns(pl.col("visit_kind").cast(dtype))
    spec = with_panel(clinic_spec, tmp_path, frame)
    panel.validate_tables(spec)
    ours = panel.read_panel(spec).select("visit_kind").collect()
    assert ours["visit_kind"].to_list() == source["visit_kind"].to_list()


ATTRIBUTES = {"profile": "beds", "scenarios": "needs_booking"}


def with_attribute(spec, table, name, value, ending):
    path = getattr(spec, table).with_name(f"other_{table}{ending}")
    frame = set_rows(
        panel.scan_table(getattr(spec, table)).collect(), name, value
    )
    frame.write_csv(path) if ending == ".csv" else frame.write_parquet(path)
    return dataclasses.replace(spec, **{table: path})


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize("value", [None, float("nan")])
@pytest.mark.parametrize("table", ATTRIBUTES)
def test_attributes_may_be_missing(tmp_path, table, value, ending):
    spec = DatasetSpec.load(write_clinic_tables(tmp_path))
    name = ATTRIBUTES[table]
    spec = with_attribute(spec, table, name, value, ending)
    panel.validate_tables(spec)
    read = {"profile": panel.read_profile, "scenarios": panel.read_scenarios}
    values = read[table](spec)[name]
    assert values.is_nan().sum() == 1 and not values.null_count()


@pytest.mark.parametrize("value", [float("inf"), -2e30, pl.lit("many")])
@pytest.mark.parametrize("table", ATTRIBUTES)
def test_attributes_that_are_no_numbers(tmp_path, table, value):
    spec = DatasetSpec.load(write_clinic_tables(tmp_path))
    name = ATTRIBUTES[table]
    (problem,) = problems_of(with_attribute(spec, table, name, value, ".csv"))
    assert (problem.column, problem.count) == (name, 1)
    assert "infinite, beyond 1e+30 or not numbers" in problem.message


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


@pytest.mark.parametrize("table", ATTRIBUTES)
def test_an_attribute_table_need_not_be(tmp_path, table):
    whole = DatasetSpec.load(write_clinic_tables(tmp_path))
    key, columns = {
        "profile": (whole.entity, "profile_columns"),
        "scenarios": (whole.scenario, "scenario_columns"),
    }[table]
    with pytest.raises(ValueError, match=f"Give `{table}`, the table that"):
        dataclasses.replace(whole, **{table: None})
    less = dataclasses.replace(whole, **{table: None, columns: {}})
    assert panel.validate_tables(less) == panel.validate_tables(whole)
    assert table not in panel.table_fingerprints(less)
    read = {"profile": panel.read_profile, "scenarios": panel.read_scenarios}
    ids = read[table](less)
    assert ids.equals(read[table](whole).select(key).sort(key))
    # As a table would list them: also those that have no row in the days.
    late = dataclasses.replace(less, start=less.end)
    assert read[table](late).equals(ids)
    kept = [name for name in next(panel.iter_records(less))]
    for ours, theirs in zip(
        panel.iter_records(less), panel.iter_records(whole), strict=True
    ):
        assert list(ours) == kept and len(kept) == len(theirs) - 2
        for name in kept:
            np.testing.assert_array_equal(ours[name], theirs[name])
    grids = [next(panel.Grids(x).read(0, 100)) for x in (less, whole)]
    assert set(grids[0]) == set(kept)
    for name in kept:
        np.testing.assert_array_equal(grids[0][name], grids[1][name])


def test_message_counts_the_problems_and_lists_them():
    problem = panel.Problem("panel.csv", "day", 3, "is empty", "''")
    for problems, count in (
        ([problem], "1 place"),
        ([problem] * 2, "2 places"),
    ):
        first, *lines = str(panel.DataValidationError(problems)).split("\n")
        assert first == f"The tables break the data contract in {count}:"
        assert lines == [f"  {problem}" for problem in problems]


def test_a_new_part_of_a_folder_is_a_changed_table(tmp_path):
    spec = DatasetSpec.load(write_clinic_tables(tmp_path))
    rows = pl.read_parquet(tmp_path / "panel.parquet")
    (tmp_path / "panel.parquet").unlink()
    folder = tmp_path / "panel.parquet" / "day=1"
    folder.mkdir(parents=True)
    rows[:-1].write_parquet(folder / "a.parquet")
    first = panel.table_fingerprints(spec)
    assert panel.table_fingerprints(spec) == first
    rows[-1:].write_parquet(folder / "b.parquet")
    second = panel.table_fingerprints(spec)
    (folder / "b.parquet").rename(folder.parent / "b.parquet")
    third = panel.table_fingerprints(spec)
    for table in ("spec", "profile", "scenarios"):
        assert first[table] == second[table] == third[table]
    assert len({first["panel"], second["panel"], third["panel"]}) == 3


def test_a_folder_with_other_files_is_refused(tmp_path):
    spec = write_clinic_tables(tmp_path)
    rows = pl.read_parquet(tmp_path / "panel.parquet")
    (tmp_path / "panel.parquet").unlink()
    folder = tmp_path / "panel.parquet"
    folder.mkdir()
    rows[:-1].write_parquet(folder / "a.parquet")
    (folder / "_SUCCESS").touch()
    (folder / ".a.parquet.crc").touch()
    panel.validate_tables(DatasetSpec.load(spec))
    for name in ("b.csv.gz", "b.PARQUET"):
        (folder / name).touch()
        with pytest.raises(ValueError, match=f"1 of its files .*{name}"):
            panel.validate_tables(DatasetSpec.load(spec))
        (folder / name).unlink()


@pytest.mark.parametrize("days", [2, 7])
def test_days_without_rows_before_the_end_are_told(tmp_path, days):
    spec = DatasetSpec.load(write_clinic_tables(tmp_path))
    last = spec.end - datetime.timedelta(days=days)
    rows = pl.read_parquet(spec.panel).filter(pl.col("day") <= last)
    rows.write_parquet(spec.panel)
    if days < spec.horizon:
        told = str(panel.validate_tables(spec))
        assert f"mind: no row is newer than {last}" in told
    else:
        message = f"no row in the 7 days up to `end`.*newest: {last}"
        with pytest.raises(panel.DataValidationError, match=message):
            panel.validate_tables(spec)


def test_later_rows_are_passed_over_if_asked(clinic_spec, source, tmp_path):
    end = datetime.date(2025, 6, 14)
    earlier = clinic_spec.until(end)
    (problem,) = problems_of(earlier)
    assert "dates outside" in problem.message
    summary = panel.validate_tables(earlier, later_rows=True)
    assert (summary.end, summary.last_day) == (end, end)
    assert summary.panel_rows == source.filter(pl.col("day") <= end).height
    # Nothing newer is looked at; what is older than `start` is.
    day, fees = pl.col("day"), pl.col("fees")
    spoilt = source.with_columns(
        pl.when(day > end).then(-1.0).otherwise(fees).alias("fees")
    )
    spoilt = with_panel(earlier, tmp_path, spoilt)
    assert panel.validate_tables(spoilt, later_rows=True) == summary
    before = set_rows(source, "day", pl.date(2025, 2, 1))
    with pytest.raises(panel.DataValidationError, match="dates outside"):
        panel.validate_tables(
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


def test_records_are_those_of_the_tables(tmp_path):
    spec = DatasetSpec.load(write_clinic_tables(tmp_path / "tables"))
    records = tmp_path / "records"
    before = ForecastData.prepare(spec, records)
    again = ForecastData.prepare(spec, records)
    assert again.num_samples("train") == before.num_samples("train")
    rows = pl.read_parquet(spec.panel)
    first = rows["clinic"].unique().sort()[0]
    rows.filter(pl.col("clinic") != first).write_parquet(spec.panel)
    changed = ForecastData.prepare(spec, records)
    assert changed.num_samples("train") < before.num_samples("train")
    # Wherever they lie.
    (tmp_path / "tables").rename(tmp_path / "moved")
    moved = DatasetSpec.load(tmp_path / "moved" / "spec.yaml")
    assert ForecastData.load(moved, records).num_samples("train") == (
        changed.num_samples("train")
    )
    other = dataclasses.replace(moved, lookback=14)
    with pytest.raises(FileNotFoundError, match="no records of this spec"):
        ForecastData.load(other, records)

import dataclasses

import numpy as np
import polars as pl
import pytest
from spoilt_tables import (
    ATTRIBUTES,
    by_kind,
    in_parts_unlike_each_other,
    with_attribute,
    with_panel,
)
from tables import write_clinic_tables

from m2m_tf.config import DatasetSpec
from m2m_tf.data import panel, validation
from m2m_tf.data.dataset import ForecastData


def test_csv_gives_the_same_records(clinic_spec, source, tmp_path):
    spec = with_panel(clinic_spec, tmp_path, source, "panel.csv")
    validation.validate_tables(spec)
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


@pytest.mark.parametrize("write", [by_day, by_kind, in_parts_unlike_each_other])
def test_a_folder_gives_the_same_records(clinic_spec, source, tmp_path, write):
    folder = tmp_path / "panel[1]"
    write(source, folder)
    spec = dataclasses.replace(clinic_spec, panel=folder)
    assert validation.validate_tables(spec) == validation.validate_tables(
        clinic_spec
    )
    assert panel.newest_days(spec) == panel.newest_days(clinic_spec)
    for ours, theirs in zip(
        panel.iter_records(spec), panel.iter_records(clinic_spec), strict=True
    ):
        assert list(ours["scenario"]) == list(theirs["scenario"])
        np.testing.assert_allclose(ours["values"], theirs["values"], rtol=1e-6)


@pytest.mark.parametrize("name", ["_day", "_number", "_part", "_file", "len"])
def test_a_column_may_be_called_as_one_might_call_a_helper(
    clinic_spec, source, tmp_path, name
):
    folder = tmp_path / "panel"
    in_parts_unlike_each_other(source.rename({"staff": name}), folder)
    spec = dataclasses.replace(
        clinic_spec, panel=folder, behavior=(name, "open_hours")
    )
    validation.validate_tables(spec)
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
    validation.validate_tables(spec)
    ours = panel.read_panel(spec).select("visits").collect()
    assert ours["visits"].to_list() == source["visits"].to_list()


@pytest.mark.parametrize(
    "dtype", [pl.Categorical, pl.Enum(["booked", "video", "walk_in"])]
)
def test_categories_are_read_as_text(clinic_spec, source, tmp_path, dtype):
    frame = source.with_columns(pl.col("visit_kind").cast(dtype))
    spec = with_panel(clinic_spec, tmp_path, frame)
    validation.validate_tables(spec)
    ours = panel.read_panel(spec).select("visit_kind").collect()
    assert ours["visit_kind"].to_list() == source["visit_kind"].to_list()


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize("value", [None, float("nan")])
@pytest.mark.parametrize("table", ATTRIBUTES)
def test_attributes_may_be_missing(tmp_path, table, value, ending):
    spec = DatasetSpec.load(write_clinic_tables(tmp_path))
    name = ATTRIBUTES[table]
    spec = with_attribute(spec, table, name, value, ending)
    validation.validate_tables(spec)
    read = {"profile": panel.read_profile, "scenarios": panel.read_scenarios}
    values = read[table](spec)[name]
    assert values.is_nan().sum() == 1 and not values.null_count()


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
    assert validation.validate_tables(less) == validation.validate_tables(whole)
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

import datetime

import polars as pl
import pytest
import yaml
from tables import write_clinic_tables

from m2m_tf.config import DatasetSpec, RunConfig
from m2m_tf.data import validation, windows
from m2m_tf.data.draft import write_draft
from pipelines import cli

KEYS = {"entity": "clinic", "scenario": "visit_kind", "date": "day"}


def days(count, **columns):
    """A panel of one shop in one channel."""
    first = datetime.date(2026, 1, 1)
    day = [first + datetime.timedelta(n) for n in range(count)]
    return pl.DataFrame(
        {"day": day, "shop": "a", "channel": "web", "orders": 1.5} | columns
    )


def draft(frame, folder):
    frame.write_parquet(folder / "p.parquet")
    return write_draft(folder, folder / "p.parquet", "shop", "channel", "day")


def test_drafts_of_tables_can_be_validated_and_run(tmp_path, capsys):
    tables = tmp_path / "tables"
    expected = DatasetSpec.load(write_clinic_tables(tables))
    (tables / "spec.yaml").unlink()
    command = ["init", str(tables / "panel.parquet")]
    for name, value in (
        *KEYS.items(),
        ("profile", tables / "profile.csv"),
        ("scenarios", tables / "scenarios.parquet"),
        ("output", tmp_path / "drafts"),
    ):
        command += [f"--{name}", str(value)]
    assert cli.main(command) == 0
    path = tmp_path / "drafts" / "spec.yaml"
    assert f"m2m-tf validate {path}" in capsys.readouterr().out
    spec = DatasetSpec.load(path)
    assert RunConfig.load(path.with_name("config.yaml")).data == path
    for name in ("start", "end", "profile_columns", "scenario_columns"):
        assert getattr(spec, name) == getattr(expected, name)
    assert set(spec.performance) == set(expected.value_columns)
    assert spec.lookback == 28 and spec.activity in spec.performance
    validation.validate_tables(spec)
    # The tables may be moved together with the drafts.
    assert (
        yaml.safe_load(path.read_text())["panel"] == "../tables/panel.parquet"
    )
    assert cli.main(command) == 2
    assert "spec.yaml: is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "count, lookback, stride",
    [
        (400, 40, 7),
        (120, 28, 7),
        (100, 28, 3),
        (80, 28, 1),
        (60, 14, 1),
        (50, 7, 1),
    ],
)
def test_windows_fit_the_days_that_there_are(tmp_path, count, lookback, stride):
    spec = draft(days(count), tmp_path)
    assert (spec.lookback, spec.stride) == (lookback, stride)
    assert windows.make_splits(spec).train


def test_what_may_be_negative_or_is_empty_is_no_task(tmp_path):
    frame = days(100, refunds=-1.0, nothing=0, note="x").with_columns(
        pl.col("orders").alias("2nd order (%)")
    )
    spec = draft(frame, tmp_path)
    assert spec.task_names == ("orders", "_2nd_order____")
    assert spec.performance == ("orders", "refunds", "nothing", "2nd order (%)")


@pytest.mark.parametrize(
    "frame, message",
    [
        (days(100).rename({"shop": "store"}), r"no column \['shop'\]"),
        (days(100).with_columns(day=pl.lit("1.1.26")), "100 values of 'day'"),
        (days(100).drop("orders"), "no column of numbers"),
        (days(10), "shorter lookback"),
    ],
)
def test_what_cannot_be_drafted_is_told_and_nothing_written(
    tmp_path, frame, message
):
    with pytest.raises(ValueError, match=message):
        draft(frame, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["p.parquet"]

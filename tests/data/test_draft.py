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
    spec = draft(days(count), tmp_path).spec
    assert (spec.lookback, spec.stride) == (lookback, stride)
    assert windows.make_splits(spec).train


def test_what_is_left_out_is_told(tmp_path):
    frame = days(100).with_columns(
        pl.Series("", range(100)),
        fees=pl.when(pl.col("day").dt.day() == 1)
        .then(pl.lit("NULL"))
        .otherwise(pl.lit("1.5")),
        empty=pl.lit(None, pl.Float64),
        refunds=-0.5,
        many=pl.concat_list("orders"),
        kind=pl.lit("x").cast(pl.Categorical),
    )
    frame = frame.with_columns(pl.col("orders").alias("orders_"))
    frame = frame.rename({"orders": "orders "})
    profile = pl.DataFrame(
        {"shop": [f"{i}" for i in range(60)], "Größe": 1.5, "none": None}
    ).with_columns(
        town=pl.lit("x").cast(pl.Categorical),
        address=pl.col("shop") + " High Street",
        beds=pl.when(pl.col("shop") == "1").then(pl.lit("n/a")).otherwise(2),
        opened=pl.lit(datetime.date(2020, 1, 1)),
        __index_level_0__=7,
    )
    profile.write_parquet(tmp_path / "profile.parquet")
    frame.write_parquet(tmp_path / "p.parquet")
    told = write_draft(
        tmp_path,
        tmp_path / "p.parquet",
        "shop",
        "channel",
        "day",
        tmp_path / "profile.parquet",
    )
    assert told.spec.performance == ("orders ", "refunds", "orders_")
    assert told.spec.task_names == ("orders_",)
    columns = told.spec.profile_columns
    assert (columns.categorical, columns.numeric) == (("town", "beds"), ())
    assert told.notes == (
        "Left out p.parquet, : an index, as pandas writes it",
        "Left out p.parquet, fees: 4 of 100 values are no numbers, such as "
        "'NULL'",
        "Left out p.parquet, empty: no row has a value",
        "Left out p.parquet, many: of type List(Float64)",
        "Left out p.parquet, kind: of type Categorical",
        "No task of p.parquet, refunds: 100 values are negative, the least "
        "-0.5",
        "No task of p.parquet, orders_: its name would be that of orders ",
        "Left out profile.parquet, Größe: its name, as one of an input of the "
        "model, may hold only letters from a to z, digits and the signs _ . - "
        "/",
        "Left out profile.parquet, none: no row has a value",
        "Left out profile.parquet, address: nearly every row has a value of "
        "its own",
        "Categorical profile.parquet, beds: 1 of 60 values are no numbers, "
        "such as 'n/a'",
        "Left out profile.parquet, opened: of type Date",
        "Left out profile.parquet, __index_level_0__: an index, as pandas "
        "writes it",
    )
    text = (tmp_path / "spec.yaml").read_text()
    assert all(f"\n# {note}.\n" in text for note in told.notes)


def test_columns_of_the_calendar_are_left_out(tmp_path):
    """But not one that is the same everywhere: a row may be a day of use."""
    frame = days(100).with_columns(weekday=pl.col("day").dt.weekday(), open=1)
    frame = pl.concat(
        [
            frame,
            frame.with_columns(
                shop=pl.lit("b"), orders=pl.col("day").dt.day() / 2
            ),
        ]
    )
    told = draft(frame, tmp_path)
    assert told.spec.performance == ("orders", "open")
    (note,) = told.notes
    assert note.startswith("Left out p.parquet, weekday: the same in all rows")


@pytest.mark.parametrize(
    "day, message",
    [
        (pl.col("day").cast(pl.Datetime("us", "Europe/Paris")), "instants"),
        (pl.lit(datetime.time(5)).alias("day"), "type: Time"),
        (pl.col("day").to_physical(), "not written YYYY-MM-DD"),
    ],
)
def test_days_that_are_none_are_refused_as_by_validation(
    tmp_path, day, message
):
    with pytest.raises(validation.DataValidationError, match=message):
        draft(days(100).with_columns(day), tmp_path)


def test_what_may_be_negative_or_is_empty_is_no_task(tmp_path):
    frame = days(100, refunds=-1.0, nothing=0, note="x").with_columns(
        pl.col("orders").alias("2nd order (%)")
    )
    told = draft(frame, tmp_path)
    assert "No task of p.parquet, nothing: all values are 0" in told.notes
    spec = told.spec
    assert spec.task_names == ("orders", "_2nd_order____")
    assert spec.performance == ("orders", "refunds", "nothing", "2nd order (%)")


@pytest.mark.parametrize(
    "frame, message",
    [
        (days(100).rename({"shop": "store"}), "column shop: is missing"),
        (
            days(100).with_columns(day=pl.lit("1.1.26")),
            "100 rows; example: 1.1.26",
        ),
        (days(100).drop("orders"), "no column of numbers"),
        (days(24), "24 days, .* too few .*; give 47 or more"),
    ],
)
def test_what_cannot_be_drafted_is_told_and_nothing_written(
    tmp_path, frame, message
):
    with pytest.raises(ValueError, match=message):
        draft(frame, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["p.parquet"]


def test_attributes_numbers_of_rows_and_shares_are_no_tasks(tmp_path):
    frame = pl.concat(
        days(100, shop=shop, channel=channel, area=area, fee=fee)
        for shop, area in (("a", 1117), ("b", 4056))
        for channel, fee in (("web", 0.02), ("app", 0.05))
    ).with_columns(
        row=pl.int_range(1000, 1400),
        orders=pl.int_range(400) % 7,
        # A click rate, and an amount of which each row has one of its own.
        rate=pl.int_range(400) % 11 / 11,
        micros=pl.int_range(400) * 1_000_003,
        # As polars calls a count of rows.
        len=pl.int_range(400) % 13,
    )
    told = draft(frame, tmp_path)
    assert told.spec.performance == ("orders", "rate", "micros", "len")
    assert told.spec.task_names == ("orders", "micros", "len")
    assert told.notes == (
        "Left out p.parquet, area: the same in all rows of a shop; an "
        "attribute, which `profile` may have",
        "Left out p.parquet, fee: the same in all rows of a channel; an "
        "attribute, which `scenarios` may have",
        "Left out p.parquet, row: a number of the row, each has its own",
        "No task of p.parquet, rate: from 0 to 0.909091, as shares are, whose "
        "sums over days mean nothing",
    )

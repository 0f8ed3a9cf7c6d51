import datetime
import inspect

import numpy as np
import polars as pl
import pytest

from m2m_tf.config import DatasetSpec, RunConfig, SimulatorSource, parse
from m2m_tf.data import validation, windows
from m2m_tf.data.sources import simulator
from pipelines import cli

DAYS = 160


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated")
    simulator.write_tables(folder, advertisers=1200, days=DAYS)
    return DatasetSpec.load(folder / "spec.yaml")


@pytest.fixture(scope="module")
def weeks(spec):
    """Totals of the tasks by advertiser, scenario and week with activity."""
    week = (pl.col("date") - spec.start).dt.total_days().floordiv(7)
    return (
        pl.read_parquet(spec.panel)
        .group_by("advertiser", "scenario", week.alias("week"))
        .agg(pl.col(simulator.TASKS).sum())
        .filter(pl.col("active_days") > 0)
    )


def read(folder, name):
    return pl.read_parquet(folder / f"{name}.parquet", glob=False)


def test_tables_keep_the_data_contract(spec):
    summary = validation.validate_tables(spec)
    assert summary.entities > 1000 and summary.scenarios == 6


def test_shares_of_scenarios_are_those_of_table_3(weeks):
    shares = {
        name: count / len(weeks)
        for name, count in weeks["scenario"].value_counts().iter_rows()
    }
    assert shares["sponsored_search"] == pytest.approx(0.735, abs=0.04)
    assert shares["news_feed"] == pytest.approx(0.212, abs=0.04)
    for name in ("brand_search", "display", "star_shop"):
        assert 0.005 < shares[name] < 0.035, name


def test_scenarios_go_together_as_in_table_1(weeks):
    """log(1 + mean weekly total) of advertisers with both; 0.67 and 0.61."""
    for task, expected in (("expenditure", 0.67), ("click", 0.61)):
        totals = weeks.group_by("advertiser", "scenario").agg(
            pl.col(task).mean().log1p()
        )
        wide = totals.pivot(on="scenario", index="advertiser", values=task)
        both = wide.select("sponsored_search", "news_feed").drop_nulls()
        assert len(both) > 150
        correlation = np.corrcoef(both.to_numpy().T)[0, 1]
        assert correlation == pytest.approx(expected, abs=0.15)


def test_new_scenarios_open_when_they_should(spec):
    splits = windows.make_splits(spec)
    first = {
        name: windows.day_number(spec, day)
        for name, day in read(spec.panel.parent, "panel")
        .group_by("scenario")
        .agg(pl.col("date").min())
        .iter_rows()
    }
    assert first["sponsored_search"] == 0
    # Seen in training, but not for long; never seen in training.
    assert 0.5 * splits.train[-1] < first["star_shop"] < splits.train[-1]
    assert first["live"] > windows.last_fit_day(spec)


def test_true_rates_are_unbiased_and_better_than_the_last_week(spec):
    truth = read(spec.panel.parent, "true_rates")
    rows = read(spec.panel.parent, "panel")
    sums = pl.DataFrame()
    for cutoff in truth["cutoff"].unique():
        first = cutoff + datetime.timedelta(days=1)
        last = cutoff + datetime.timedelta(days=7)
        for name, start, end in (
            ("label", first, last),
            ("naive", cutoff - datetime.timedelta(days=6), cutoff),
        ):
            part = (
                rows.filter(pl.col("date").is_between(start, end))
                .group_by("advertiser", "scenario")
                .agg(pl.col(simulator.TASKS).sum())
                .with_columns(
                    pl.lit(cutoff).alias("cutoff"), pl.lit(name).alias("kind")
                )
            )
            sums = pl.concat([sums, part]) if len(sums) else part
    for task in simulator.TASKS:
        table = truth.select(
            "advertiser", "scenario", "cutoff", f"{task}_mean", f"{task}_median"
        )
        for kind in ("label", "naive"):
            part = sums.filter(pl.col("kind") == kind).select(
                "advertiser",
                "scenario",
                "cutoff",
                pl.col(task).cast(pl.Float64).alias(kind),
            )
            table = table.join(
                part, on=["advertiser", "scenario", "cutoff"], how="left"
            ).with_columns(pl.col(kind).fill_null(0.0))
        label, naive = table["label"].to_numpy(), table["naive"].to_numpy()
        mean = table[f"{task}_mean"].to_numpy()
        assert label.sum() / mean.sum() == pytest.approx(1, abs=0.1), task
        error = np.abs(label - table[f"{task}_median"].to_numpy()).sum()
        assert error < 0.95 * np.abs(label - naive).sum(), task
        assert error < np.abs(label - mean).sum(), task


def test_seed_decides_and_groups_do_not_touch(tmp_path):
    small = {"advertisers": 30, "days": 140}
    for name, changes in (
        ("a", {}),
        ("b", {}),
        ("c", {"seed": 1}),
        ("d", {"scenario_dependence": False}),
    ):
        simulator.write_tables(tmp_path / f"[{name}]", **small | changes)
    tables = {name: read(tmp_path / f"[{name}]", "panel") for name in "abcd"}
    assert tables["a"].equals(tables["b"])
    assert not tables["a"].equals(tables["c"])
    assert not tables["a"].equals(tables["d"])


def test_more_advertisers_leave_the_first_groups_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(simulator, "_CHUNK", 20)
    simulator.write_tables(tmp_path / "few", advertisers=20, days=140)
    simulator.write_tables(tmp_path / "more", advertisers=40, days=140)
    more = read(tmp_path / "more", "panel")
    assert (
        more.filter(pl.col("advertiser") < "a0000020")
        .sort("advertiser", "scenario", "date")
        .equals(
            read(tmp_path / "few", "panel").sort(
                "advertiser", "scenario", "date"
            )
        )
    )


def test_more_scenarios_leave_the_first_as_they_are(tmp_path):
    few, more = (simulator.make_world(scenarios=count) for count in (9, 24))
    assert more.scenarios[:9].equals(few.scenarios)
    assert few.scenarios[:6].equals(simulator.make_world().scenarios)
    assert (more.reach[1:6].max() < 0.3) and (more.reach[6:] <= 0.06).all()
    path = simulator.write_tables(
        tmp_path / "more", advertisers=300, days=140, scenarios=24
    )
    spec = DatasetSpec.load(path)
    summary = validation.validate_tables(spec)
    assert summary.scenarios == 24
    first = (
        read(path.parent, "panel")
        .group_by("scenario")
        .agg(pl.col("date").min())
    )
    opened = {
        name: windows.day_number(spec, day) for name, day in first.iter_rows()
    }
    assert len(opened) == 24
    # Of each six one opens late, one when no training is left.
    last = windows.last_fit_day(spec)
    names = more.scenarios["scenario"]
    assert all(opened[name] > last for name in names[5::6])
    assert all(last / 2 < opened[name] for name in names[2::6])
    assert all(opened[name] < last / 2 for name in names[::6])


def test_mechanisms_of_further_scenarios_follow_from_the_others():
    """Before the bound they are linear in the attributes, of which 6 are."""
    mechanism = simulator.make_world(scenarios=24).mechanism.reshape(24, -1)
    assert np.linalg.matrix_rank(mechanism[:18]) == 6
    assert np.linalg.matrix_rank(mechanism) == 6


def test_mechanisms_differ_by_scenario_only_if_they_should():
    categories = np.arange(simulator.CATEGORIES)
    weights = simulator.make_world().weights(categories)
    clicks = weights[:, :, 1]
    assert ((clicks.min(1) < -0.1) & (clicks.max(1) > 0.1)).any(-1).all()
    assert weights.std(0).max() > 0.05  # By category, too.
    weak = simulator.make_world(mechanism_strength=0.25).weights(categories)
    np.testing.assert_allclose(weak, weights / 2)
    same = simulator.make_world(False).weights(categories)
    np.testing.assert_allclose(same, same[:, :1].repeat(6, axis=1))
    assert same.std(0).max() > 0.05


def test_moved_rates_are_those_that_advertisers_have():
    world = simulator.make_world(mechanism_strength=1.0)
    behavior = np.random.default_rng(0).poisson(0.5, (4, 30, 5))
    scenario, category = [0, 3, 3, 5], [1, 1, 7, 0]
    weights = world.weights(np.array(category))[range(4), scenario]
    moved = simulator.moved_rates(behavior, weights)
    for row in range(4):
        z = np.zeros(5)
        for day in range(30):
            z = 0.9 * z + 0.1 * 2.5 * np.log(1 + behavior[row, day])
            for task in range(4):
                total = sum(weights[row, task, k] * z[k] for k in range(5))
                assert moved[row, day, task] == pytest.approx(
                    2 * np.tanh(total / 2)
                )


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"advertisers": 0}, "`advertisers` must be 1 at least.*=0"),
        ({"days": 100}, "`days` must be 140 at least.*=100"),
        ({"seed": -1}, "`seed` must be 0 at least.*=-1"),
        (
            {"mechanism_strength": -0.1},
            "`mechanism_strength` must be 0 at least.*=-0.1",
        ),
        ({"scenarios": 5}, "`scenarios` must be 6 at least.*=5"),
    ],
)
def test_wrong_arguments(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        simulator.write_tables(tmp_path / "x", **changes)
    assert not (tmp_path / "x").exists()


def test_command_writes_tables_that_validate(tmp_path, capsys):
    folder = tmp_path / "simulated"
    command = ["simulate", str(folder), "--advertisers", "40", "--days", "140"]
    assert cli.main(command) == 0
    assert cli.main(["validate", str(folder / "spec.yaml")]) == 0
    assert "valid: 40 entities" in capsys.readouterr().out
    # What is there is not replaced.
    before = {path.name: path.stat() for path in folder.iterdir()}
    assert cli.main(command) == 2
    assert "Give a new or an empty folder" in capsys.readouterr().err
    assert {path.name: path.stat() for path in folder.iterdir()} == before


def test_a_config_has_the_defaults_of_the_function():
    source = SimulatorSource("simulator")
    for name, wanted in inspect.signature(
        simulator.write_tables
    ).parameters.items():
        if name != "output_dir":
            assert getattr(source, name) == wanted.default, name


def test_a_run_can_simulate_its_data():
    values = {"name": "x", "data": {"name": "simulator", "advertisers": 9}}
    config = parse(RunConfig, values)
    assert (config.data.advertisers, config.data.days) == (9, 240)

import dataclasses
import datetime
import pathlib
import shutil
import signal
import subprocess
import sys
import types

import numpy as np
import polars as pl
import pytest
from tables import write_clinic_tables

from m2m_tf import training
from m2m_tf.config import DatasetSpec
from m2m_tf.data import panel, validation, windows
from m2m_tf.export import CONTRACT_FILE, DamagedModel
from m2m_tf.serving import batch_scoring


def score(exported, spec, tmp_path, cutoff=None, **kwargs):
    output = tmp_path / "out.parquet"
    batch_scoring.score_tables(
        exported, spec, cutoff or spec.end, output, **kwargs
    )
    return pl.read_parquet(output, glob=False)


def test_every_pair_is_scored_once(exported, clinic_spec, tmp_path):
    table = score(exported, clinic_spec, tmp_path)
    parts = ("", "_median", "_lower", "_upper")
    assert table.columns == [
        "clinic",
        "visit_kind",
        "cutoff",
        "recently_active",
        *(t + part for t in ("visits", "fees", "open") for part in parts),
    ]
    assert table.height == 12 * 3
    assert table.select("clinic", "visit_kind").is_unique().all()
    numbers = table.select("visits", "fees", "open").to_numpy()
    assert np.isfinite(numbers).all() and (numbers > 0).all()
    assert table["open"].max() <= 1
    for task in ("visits", "fees", "open"):
        lower, median, upper = (
            table[f"{task}_{name}"] for name in ("lower", "median", "upper")
        )
        assert (0 <= lower).all() and (lower <= median).all()
        assert (median <= upper).all()


def test_scores_agree_with_the_trained_model(
    exported, clinic_data, trained, tmp_path
):
    data = clinic_data
    day = data.splits.test[-1]
    cutoff = windows.date_of(data.spec, day)
    table = score(exported, data.spec, tmp_path, cutoff)
    model = training.load_model(trained[0])
    checked = 0
    for batch in data.raw("test", 64):
        log_rates = model(data.preprocessor(batch))
        for row in range(len(batch["entity"])):
            (got,) = table.filter(
                (pl.col("clinic") == batch["entity"][row].numpy().decode())
                & (
                    pl.col("visit_kind")
                    == batch["scenario"][row].numpy().decode()
                )
            ).iter_rows(named=True)
            assert got["fees"] == pytest.approx(
                float(np.exp(log_rates["fees"][row, 0])), rel=1e-5
            )
            checked += 1
    assert checked == data.num_samples("test")


def test_days_after_the_cutoff_are_not_read(exported, tmp_path):
    spec = DatasetSpec.load(write_clinic_tables(tmp_path / "t"))
    cutoff = spec.start + datetime.timedelta(days=60)
    before = score(exported, spec, tmp_path, cutoff)
    frame = pl.read_parquet(spec.panel)
    frame.filter(pl.col("day") <= cutoff).write_parquet(spec.panel)
    after = score(exported, spec, tmp_path, cutoff)
    assert before.equals(after)


def test_unknown_entities_scenarios_and_categories_are_scored(
    exported, tmp_path
):
    spec = DatasetSpec.load(write_clinic_tables(tmp_path / "t"))
    frame = pl.read_parquet(spec.panel)
    new = frame.filter(pl.col("clinic") == "clinic_000").with_columns(
        clinic=pl.lit("clinic_new"), visit_kind=pl.lit("phone")
    )
    pl.concat(
        [frame, new.unique(["clinic", "visit_kind", "day"])]
    ).write_parquet(spec.panel)
    output = tmp_path / "unknown.parquet"
    summary = batch_scoring.score_tables(exported, spec, spec.end, output)
    # 13 in the new kind of visit; 4 of the clinic that has no profile.
    assert summary.unknown["scenario"] == 13
    assert summary.unknown["profile_town"] == 4
    lookback = datetime.timedelta(spec.lookback)
    active = pl.read_parquet(spec.panel).filter(
        pl.col("visits") > 0, pl.col("day") > spec.end - lookback
    )
    active = active.select("clinic", "visit_kind").unique()
    # No old clinic was phoned, and the new one does nothing else.
    assert summary.inactive == 13 * 4 - len(active) >= 12 + 3
    assert f"{summary.inactive} without activity" in str(summary)
    assert str(summary).startswith(
        "52 forecasts (value empty or not seen in training"
    )
    table = pl.read_parquet(output)
    assert table.height == 13 * 4
    told = table.filter("recently_active").select("clinic", "visit_kind")
    assert told.sort(pl.all()).equals(active.sort(pl.all()))
    new = table.filter(pl.col("clinic") == "clinic_new")
    assert set(new["visit_kind"]) == {"walk_in", "booked", "video", "phone"}
    assert np.isfinite(new["visits"].to_numpy()).all()


def test_chunks_give_the_same_scores(exported, clinic_spec, tmp_path):
    keys = ["clinic", "visit_kind"]
    whole = score(exported, clinic_spec, tmp_path).sort(keys)
    folder = tmp_path / "week [1]"  # No pattern.
    parts = score(exported, clinic_spec, folder, chunk_rows=100).sort(keys)
    assert whole.select(keys).equals(parts.select(keys))
    np.testing.assert_allclose(whole["fees"], parts["fees"], rtol=1e-5)


def test_a_folder_of_parts_goes_on_where_it_was_stopped(
    exported, clinic_spec, tmp_path, monkeypatch
):
    folder = tmp_path / "forecasts"

    def into_folder(cutoff=clinic_spec.end):
        return batch_scoring.score_tables(
            exported, clinic_spec, cutoff, folder, chunk_rows=100
        )

    scored = []
    score_chunk = batch_scoring._Scoring._score

    def stops_at_the_third(self, chunk, bar):
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(chunk)
        return score_chunk(self, chunk, bar)

    monkeypatch.setattr(batch_scoring._Scoring, "_score", stops_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        into_folder()
    monkeypatch.setattr(batch_scoring._Scoring, "_score", score_chunk)
    kept = {x: x.stat().st_mtime_ns for x in folder.glob("part-*.parquet")}
    assert len(kept) == 2
    summary = into_folder()
    assert summary.forecasts == 36
    for path, written in kept.items():
        assert path.stat().st_mtime_ns == written
    keys = ["clinic", "visit_kind"]
    whole = score(exported, clinic_spec, tmp_path).sort(keys)
    parts = pl.read_parquet(folder / "part-*.parquet").sort(keys)
    assert whole.select(keys).equals(parts.select(keys))
    np.testing.assert_allclose(whole["fees"], parts["fees"], rtol=1e-5)
    # Forecasts of another day never mix with these.
    with pytest.raises(batch_scoring.ContractError, match="something else"):
        into_folder(clinic_spec.end - datetime.timedelta(days=1))
    assert into_folder().forecasts == 36


@pytest.mark.parametrize("name", ["week", "week.parquet"])
def test_a_kill_in_the_first_part_leaves_nothing_in_the_way(
    exported, clinic_spec, tmp_path, monkeypatch, name
):
    output = tmp_path / "forecasts" / name
    command = (
        "import polars, os, signal\n"
        "write = polars.DataFrame.write_parquet\n"
        "def killed(self, path):\n"
        "    write(self, path)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "polars.DataFrame.write_parquet = killed\n"
        "import pathlib\n"
        "from m2m_tf.config import DatasetSpec\n"
        "from m2m_tf.serving.batch_scoring import score_tables\n"
        f"spec = DatasetSpec.load({str(clinic_spec.panel.parent)!r} + "
        "'/spec.yaml')\n"
        f"score_tables({str(exported)!r}, spec, spec.end, {str(output)!r})"
    )
    killed = subprocess.run([sys.executable, "-c", command], timeout=300)
    assert killed.returncode == -signal.SIGKILL
    assert list(output.parent.rglob(".tmp-*"))
    summary = batch_scoring.score_tables(
        exported, clinic_spec, clinic_spec.end, output
    )
    assert summary.forecasts == 36
    assert not list(output.parent.rglob(".tmp-*"))


def test_rows_after_the_cutoff_bring_no_scenario(exported, tmp_path):
    spec = DatasetSpec.load(write_clinic_tables(tmp_path / "tables"))
    panel = pl.read_parquet(spec.panel)
    later = panel[-1:].with_columns(
        pl.lit(spec.end).alias("day"), pl.lit("by_post").alias("visit_kind")
    )
    pl.concat([panel, later]).write_parquet(spec.panel)
    before = spec.end - datetime.timedelta(days=1)
    summary = batch_scoring.score_tables(
        exported, spec, before, tmp_path / "week.parquet"
    )
    assert summary.forecasts == 36


def test_short_history_is_scored(exported, clinic_spec, tmp_path):
    cutoff = clinic_spec.start + datetime.timedelta(days=9)
    table = score(exported, clinic_spec, tmp_path, cutoff)
    assert np.isfinite(table["visits"].to_numpy()).all()


def test_spec_that_does_not_fit_the_model_is_refused(
    exported, clinic_spec, tmp_path
):
    spec = dataclasses.replace(clinic_spec, lookback=21)
    with pytest.raises(
        batch_scoring.ContractError, match="lookback must be 28"
    ):
        score(exported, spec, tmp_path)


def test_tables_that_have_grown_are_scored(exported, tmp_path):
    longer = DatasetSpec.load(write_clinic_tables(tmp_path / "t"))
    cutoff = longer.end - datetime.timedelta(days=1)
    spec = dataclasses.replace(
        longer, end=longer.end - datetime.timedelta(days=10)
    )
    grown = score(exported, spec, tmp_path, cutoff)
    assert grown.equals(score(exported, longer, tmp_path, cutoff))


@pytest.mark.parametrize(
    ("day", "message"),
    [("2030-01-01", "last day is"), ("1999-01-01", "before")],
)
def test_cutoff_without_data_is_refused(
    exported, clinic_spec, tmp_path, day, message
):
    with pytest.raises(batch_scoring.ContractError, match=message):
        score(exported, clinic_spec, tmp_path, datetime.date.fromisoformat(day))


@pytest.mark.parametrize("rows_after", [False, True])
def test_days_that_are_not_yet_written_are_no_zeros(
    exported, tmp_path, rows_after
):
    spec = DatasetSpec.load(write_clinic_tables(tmp_path / "t"))
    cutoff = spec.end - datetime.timedelta(days=7)
    frame = pl.read_parquet(spec.panel)

    def without(days):
        first = cutoff - datetime.timedelta(days=days - 1)
        kept = pl.col("day") < first
        if rows_after:
            kept |= pl.col("day") > cutoff
        frame.filter(kept).write_parquet(spec.panel)

    without(7)
    with pytest.raises(
        batch_scoring.ContractError, match="no row in the 7 days up to"
    ):
        score(exported, spec, tmp_path, cutoff)
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    without(5)
    assert score(exported, spec, tmp_path, cutoff).height == 36
    without(60)
    with pytest.raises(batch_scoring.ContractError, match="has no row in"):
        score(exported, spec, tmp_path, cutoff)


def test_pairs_bound_a_chunk_as_rows_do(clinic_spec):
    few_rows = dataclasses.replace(clinic_spec, start=clinic_spec.end)
    assert panel.count_chunks(few_rows, 36) == 1
    assert panel.Grids(few_rows, 36).num_chunks == 1
    assert panel.Grids(few_rows, 35).num_chunks == 2


def test_bad_rows_are_refused_and_nothing_is_left(exported, tmp_path):
    spec = DatasetSpec.load(write_clinic_tables(tmp_path / "t"))
    frame = pl.read_parquet(spec.panel)
    pl.concat([frame, frame.tail(1)]).write_parquet(spec.panel)
    with pytest.raises(
        validation.DataValidationError, match="more than one row"
    ):
        score(exported, spec, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


@pytest.mark.parametrize(
    "file, content",
    [
        (CONTRACT_FILE, b"["),
        (CONTRACT_FILE, b"[1]"),
        ("variables/variables.data-00000-of-00001", b""),
    ],
)
def test_a_damaged_model_is_named(
    exported, clinic_spec, tmp_path, file, content
):
    version = shutil.copytree(exported / "1", tmp_path / "7")
    (version / file).write_bytes(content)
    with pytest.raises(
        (batch_scoring.ContractError, DamagedModel), match="/7.* broke off"
    ):
        score(version, clinic_spec, tmp_path)


FACTORS = np.array([[1.0], [np.inf], [1.0]] * 12, "float32")


def test_forecasts_that_overflow_are_told(
    exported, clinic_spec, tmp_path, monkeypatch
):
    load = batch_scoring.load_version

    def overflowing(version):
        model = load(version)

        def predict(**rows):
            told = dict(signature(**rows))
            return told | {"fees": told["fees"] * FACTORS}

        signature = model.signatures["predict"]
        predict.structured_outputs = signature.structured_outputs
        return types.SimpleNamespace(signatures={"predict": predict}, of=model)

    monkeypatch.setattr(batch_scoring, "load_version", overflowing)
    summary = batch_scoring.score_tables(
        exported, clinic_spec, clinic_spec.end, tmp_path / "out.parquet"
    )
    assert "mind: 12 forecasts of fees are not finite" in str(summary)


def test_activity_of_a_known_future_column_is_not_told(
    exported, clinic_spec, tmp_path
):
    spec = dataclasses.replace(clinic_spec, activity="appointments")
    assert "recently_active" not in score(exported, spec, tmp_path).columns


def test_days_without_rows_are_told(exported, tmp_path):
    spec = DatasetSpec.load(write_clinic_tables(tmp_path))
    frame = pl.read_parquet(spec.panel)
    late = spec.end - datetime.timedelta(3)
    frame.filter(pl.col("day") <= late).write_parquet(spec.panel)
    summary = batch_scoring.score_tables(
        exported, spec, spec.end, tmp_path / "out.parquet"
    )
    assert f"mind: no row is newer than {late}; the days up to" in str(summary)
    day = pl.col("day")
    of_last = frame.filter(day == spec.end).head(3)
    few = pl.concat([frame.filter(day < spec.end), of_last])
    few.write_parquet(spec.panel)
    summary = batch_scoring.score_tables(
        exported, spec, spec.end, tmp_path / "out.parquet"
    )
    assert "1 day has far fewer rows than is usual on" in str(summary)
    assert f"{spec.end} (3, usually 27)" in str(summary)


def test_folder_without_a_model(clinic_spec, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no SavedModel"):
        score(tmp_path, clinic_spec, tmp_path)


def test_a_table_by_a_relative_path_is_not_written_over(
    exported, tmp_path, monkeypatch
):
    spec = DatasetSpec.load(write_clinic_tables(tmp_path))
    monkeypatch.chdir(tmp_path)
    relative = dataclasses.replace(spec, panel=pathlib.Path("panel.parquet"))
    with pytest.raises(batch_scoring.ContractError, match="would be lost"):
        batch_scoring.score_tables(
            exported, relative, spec.end, "panel.parquet"
        )


def test_output_that_would_cost_something_is_refused(exported, tmp_path):
    spec = DatasetSpec.load(write_clinic_tables(tmp_path / "tables"))
    folder = tmp_path / "week.parquet"
    folder.mkdir()
    before = spec.panel.read_bytes()
    for output, message in (
        (folder, "week.parquet: is a folder"),
        (folder.with_suffix(".csv"), "must be a .parquet file, or a folder"),
        (spec.panel, "panel.parquet: is a table of the spec"),
    ):
        with pytest.raises(batch_scoring.ContractError, match=message):
            batch_scoring.score_tables(exported, spec, spec.end, output)
    assert spec.panel.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {
        "tables",
        "week.parquet",
    }


def in_parts(spec, folder):
    """The spec with its panel as a folder of two files."""
    folder.mkdir()
    rows = pl.read_parquet(spec.panel)
    rows[::2].write_parquet(folder / "a.parquet")
    rows[1::2].write_csv(folder / "b.csv")
    return dataclasses.replace(spec, panel=folder)


def test_a_panel_in_parts_is_scored_alike(exported, clinic_spec, tmp_path):
    whole = score(exported, clinic_spec, tmp_path)
    spec = in_parts(clinic_spec, tmp_path / "panel")
    assert score(exported, spec, tmp_path).equals(whole)


def test_forecasts_may_not_become_a_part_of_a_table(
    exported, clinic_spec, tmp_path
):
    spec = in_parts(clinic_spec, tmp_path / "panel")
    for output in (spec.panel / "week.parquet", spec.panel / "week"):
        with pytest.raises(batch_scoring.ContractError, match="lies in a tabl"):
            batch_scoring.score_tables(exported, spec, spec.end, output)
    assert len(list(spec.panel.iterdir())) == 2


def test_parts_of_other_tables_are_not_gone_on_with(
    exported, clinic_spec, tmp_path
):
    spec = in_parts(clinic_spec, tmp_path / "panel")
    output = tmp_path / "week"
    for _ in range(2):
        batch_scoring.score_tables(exported, spec, spec.end, output)
    pl.read_parquet(spec.panel / "a.parquet")[1:].write_parquet(
        spec.panel / "a.parquet"
    )
    with pytest.raises(batch_scoring.ContractError, match="something else"):
        batch_scoring.score_tables(exported, spec, spec.end, output)


def test_only_rows_that_are_read_must_be_right(exported, tmp_path):
    spec = DatasetSpec.load(write_clinic_tables(tmp_path / "tables"))
    days = pl.col(spec.date)
    first = spec.end - datetime.timedelta(days=spec.lookback - 1)
    rows = pl.read_parquet(spec.panel)

    def spoil(wrong):
        rows.with_columns(
            fees=pl.when(wrong).then(-1.0).otherwise(pl.col("fees"))
        ).write_parquet(spec.panel)

    spoil(days < first)
    assert score(exported, spec, tmp_path).height == 36
    spoil(days <= spec.end)
    with pytest.raises(validation.DataValidationError, match="fees"):
        score(exported, spec, tmp_path)

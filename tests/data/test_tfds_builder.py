import dataclasses
import pathlib
import signal
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl import logging
from tables import write_clinic_tables

from m2m_tf import files
from m2m_tf.config import DatasetSpec
from m2m_tf.data import panel, tfds_builder


def test_records_read_back_equal_those_of_the_tables(clinic_data):
    expected = {r["entity"]: r for r in panel.iter_records(clinic_data.spec)}
    read = list(clinic_data.records.as_numpy_iterator())
    assert len(read) == len(expected)
    for record in read:
        ours = expected[record["entity"].decode()]
        np.testing.assert_array_equal(record["values"], ours["values"])
        names = [name.decode() for name in record["scenario"]]
        assert names == list(ours["scenario"])
        assert record["profile_town"].decode() == ours["profile_town"]
        assert record["scenario_needs_booking"].tolist() == (
            ours["scenario_needs_booking"].tolist()
        )


def test_prepared_folder_opens_as_a_plain_tfds_dataset(clinic_spec, tmp_path):
    builder = tfds_builder.prepare_records(clinic_spec, tmp_path)
    plain = tfds.builder_from_directory(builder.data_dir)
    assert plain.version == tfds_builder.PanelSeries.VERSION
    assert plain.info.splits["series"].num_examples == 12


def test_another_spec_gets_another_folder(clinic_spec, tmp_path):
    other = dataclasses.replace(clinic_spec, lookback=21)
    folders = {
        tfds_builder.PanelSeries(spec=spec, data_dir=tmp_path).data_dir
        for spec in (clinic_spec, other)
    }
    assert len(folders) == 2


def test_what_a_killed_process_has_left_is_removed(clinic_spec, tmp_path):
    """Killed while it deals rows: half a copy, and half a set of records."""
    code = (
        "import os, signal, sys\n"
        "from m2m_tf.config import DatasetSpec\n"
        "from m2m_tf.data import panel, tfds_builder\n"
        "def killed(*args):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "panel._chunk_records = killed\n"
        "panel.iter_records.__defaults__ = (300, None)\n"
        "spec = DatasetSpec.load(sys.argv[1])\n"
        "tfds_builder.prepare_records(spec, sys.argv[2])\n"
    )
    path = write_clinic_tables(tmp_path / "tables")
    records = tmp_path / "records"
    process = subprocess.run(
        [sys.executable, "-c", code, str(path), str(records)],
        check=False,
        capture_output=True,
        timeout=120,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    (left,) = records.glob(".tmp-*-rows")
    assert any(left.rglob("*.parquet"))
    assert list(records.glob("*/*/incomplete.*"))
    tfds_builder.prepare_records(DatasetSpec.load(path), records)
    assert not list(records.glob(".tmp-*"))
    assert not list(records.glob("*/*/incomplete.*"))


def test_records_are_written_by_one_process_at_a_time(clinic_spec, tmp_path):
    builder = tfds_builder.PanelSeries(spec=clinic_spec, data_dir=tmp_path)
    lock = pathlib.Path(builder.data_path).parent / ".lock"
    with (
        files.only_one(lock, "busy"),
        pytest.raises(RuntimeError, match="another process is writing these"),
    ):
        tfds_builder.prepare_records(clinic_spec, tmp_path)
    tfds_builder.prepare_records(clinic_spec, tmp_path)


def test_only_our_progress_bar_is_shown(clinic_spec, tmp_path, capfd, caplog):
    before = logging.get_verbosity()
    builder = tfds_builder.prepare_records(clinic_spec, tmp_path)
    tfds_builder.read_records(builder)
    told = capfd.readouterr()
    assert not told.out and not caplog.records
    assert "records" in told.err and "Generating" not in told.err
    assert logging.get_verbosity() == before


def test_nothing_is_left_in_the_folder_of_temporary_files(
    clinic_spec, tmp_path, monkeypatch
):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    tfds_builder.prepare_records(clinic_spec, tmp_path / "records")
    assert not list(temporary.iterdir())

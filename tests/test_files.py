import os
import shutil
import subprocess
import sys

import pytest

from m2m_tf import files

KILLED = """
import os, signal, sys
from m2m_tf import files
with files.replacing(sys.argv[1]) as temporary:
    temporary.mkdir()
    (temporary / "half").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


KILLED_WITH_SCRATCH = """
import os, signal, sys
from m2m_tf import files
folder = files.scratch_folder(sys.argv[1], "rows")
os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def kill_one(path, script=KILLED):
    command = [sys.executable, "-c", script, str(path)]
    assert subprocess.run(command, timeout=60).returncode < 0


def test_what_a_killed_process_has_left_goes_with_the_next_try(tmp_path):
    kill_one(tmp_path / "1")
    kill_one(tmp_path / "other")
    (own, others) = sorted(names(tmp_path), key=lambda x: x.endswith("other"))
    assert own.endswith("-1")
    # Whoever is still running is left alone.
    busy = f".tmp-{os.getppid()}-1"
    (tmp_path / busy).mkdir()
    with files.replacing(tmp_path / "1") as temporary:
        assert names(tmp_path) == sorted([others, busy])
        temporary.write_text("whole")
    assert names(tmp_path) == sorted(["1", others, busy])
    files.remove_abandoned(tmp_path)
    assert names(tmp_path) == sorted(["1", busy])


KILLED_IN_ITS_PLACE = """
import os, shutil, signal, sys
from m2m_tf import files
def kill(path):
    os.kill(os.getpid(), signal.SIGKILL)
files._remove = kill
with files.replacing(sys.argv[1]) as temporary:
    temporary.mkdir()
    (temporary / "new").write_text("x")
"""


def test_a_folder_is_replaced_whole(tmp_path):
    """Killed while the old one is removed, the new one is there already."""
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "old").write_text("x")
    kill_one(folder, KILLED_IN_ITS_PLACE)
    assert names(folder) == ["new"]
    assert len(names(tmp_path)) == 2
    with files.replacing(folder) as temporary:
        temporary.mkdir()
    assert (names(folder), names(tmp_path)) == ([], ["tables"])


def test_a_scratch_folder_stays_as_long_as_it_is_used(tmp_path, monkeypatch):
    kill_one(tmp_path, KILLED_WITH_SCRATCH)
    (left,) = names(tmp_path)
    used = files.scratch_folder(tmp_path, "rows")
    # In another container no process has the number of the one that uses it.
    monkeypatch.setattr(files, "_is_running", lambda process: False)
    files.remove_abandoned(tmp_path, "rows")
    assert names(tmp_path) == [os.path.basename(used.name)] != [left]
    used.cleanup()
    assert names(tmp_path) == []


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        with files.replacing(path) as temporary:
            temporary.write_text("new")
            raise ZeroDivisionError
    assert names(tmp_path) == ["file"] and path.read_text() == "old"
    with files.replacing(path) as temporary:
        temporary.write_text("new")
    assert names(tmp_path) == ["file"] and path.read_text() == "new"


def test_room_is_that_of_the_disk_a_path_is_to_lie_on(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    free = shutil.disk_usage(tmp_path).free
    files.require_room(path, free // 2)
    with pytest.raises(OSError, match="new/folder/file: the disk has not"):
        files.require_room(path, 2 * free)
    assert not path.parent.exists()


@pytest.mark.parametrize("written", [[""], ["a", "b/c"]])
def test_all_is_on_the_disk_before_it_has_its_name(
    tmp_path, monkeypatch, written
):
    flushed, flush, rename = set(), os.fsync, os.replace

    def files_of(place):
        paths = place.rglob("*") if place.is_dir() else [place]
        return {path.stat().st_ino for path in paths if path.is_file()}

    def recorded(descriptor):
        flush(descriptor)
        flushed.add(os.fstat(descriptor).st_ino)

    def checked(source, target):
        assert files_of(source) == flushed
        rename(source, target)

    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(os, "replace", checked)
    with files.replacing(tmp_path / "name") as temporary:
        for path in written:
            target = temporary / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text("x")
    assert len(flushed) == len(written) and names(tmp_path) == ["name"]

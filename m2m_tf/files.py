"""Writing that leaves either the old file or the whole new one."""

import contextlib
import glob
import json
import os
import pathlib
import shutil
import tempfile
import weakref

# In a scratch folder, locked by whoever uses it.
_LOCK_FILE = ".lock"


@contextlib.contextmanager
def replacing(path: str | os.PathLike):
    """Yields a temporary path beside `path`, renamed to it on success.

    The temporary name keeps the file's endings, since Keras and polars tell a
    format by them. On an error the temporary file or folder is removed, and
    before the next try what a killed process has left of the last one. What
    was written is on the disk before it has its name, so that a machine that
    stops has not a file of nothing under it. A folder gives way to a new one
    in two steps, between which a killed process leaves neither.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, path.name)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        yield temporary
        _to_disk(temporary)
        if path.is_dir():
            before = path.with_name(f".tmp-{os.getpid()}-before-{path.name}")
            os.replace(path, before)
            os.replace(temporary, path)
            _remove(before)
        else:
            os.replace(temporary, path)
    finally:
        _remove(temporary)


def require_room(path: str | os.PathLike, size: int) -> None:
    """Refuses to write what the disk has no room for.

    Raises:
        OSError: If less than `size` bytes are free where `path` would lie.
    """
    folder = pathlib.Path(path).absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(
            f"{path}: the disk has not the room for it. Make some, and run "
            f"the same again. Needed: {size / 2**20:.0f} MiB; free: "
            f"{free / 2**20:.0f}."
        )


def scratch_folder(
    parent: str | os.PathLike | None, name: str
) -> tempfile.TemporaryDirectory:
    """A folder that goes with its object or the process, at the latest.

    If the process is killed, `remove_abandoned` removes it, and not before:
    it holds a lock, which other containers see, too.

    Args:
        parent: Folder to make it in; None: that of the system.
        name: What it is for.
    """
    if parent is not None:
        pathlib.Path(parent).mkdir(parents=True, exist_ok=True)
    folder = tempfile.TemporaryDirectory(
        prefix=f".tmp-{os.getpid()}-", suffix=f"-{name}", dir=parent
    )
    if os.name != "nt":
        lock = open(pathlib.Path(folder.name, _LOCK_FILE), "w")
        weakref.finalize(folder, lock.close)
        _try_to_lock(lock)
    return folder


def _try_to_lock(file):
    """Whether nobody else held its lock; it is ours until it is closed."""
    # Not on Windows, where the library can be used all the same.
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def only_one(path: str | os.PathLike, message: str):
    """Holds a lock file, so that nobody else does the same meanwhile.

    Raises:
        RuntimeError: With the message, if another process holds it.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        if not _try_to_lock(lock):
            raise RuntimeError(message)
        yield


def remove_folder(path: str | os.PathLike) -> None:
    """Removes a folder; under its name it is there whole or not at all."""
    path = pathlib.Path(path)
    removed = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    os.replace(path, removed)
    _remove(removed)


def remove_abandoned(
    folder: str | os.PathLike, name: str | None = None
) -> None:
    """Removes what processes that were killed have left half in a folder.

    Args:
        folder: The folder.
        name: File or folder that they were writing; None: any.
    """
    ending = "*" if name is None else glob.escape(name)
    for path in pathlib.Path(folder).glob(f".tmp-*-{ending}"):
        number = path.name.split("-")[1]
        if number.isdigit() and not _is_used(path, int(number)):
            _remove(path)


def _to_disk(path):
    # Windows flushes no file that is open for reading alone.
    mode = os.O_RDWR if os.name == "nt" else os.O_RDONLY
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            descriptor = os.open(file, mode)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _remove(path):
    # A link to a folder is not the folder.
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_used(path, process):
    try:
        with open(path / _LOCK_FILE, "r+") as lock:
            return not _try_to_lock(lock)
    except (FileNotFoundError, NotADirectoryError):
        return _is_running(process)


def _is_running(process):
    # In a container each process may have the same number, 1: what bears our
    # own was left by one before us, as nothing is written twice at a time.
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, values) -> None:
    """Writes a JSON file, whole or not at all."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def read_json(path: str | os.PathLike):
    """Reads a JSON file."""
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))


def write_compact_json(path: str | os.PathLike, values) -> None:
    """Writes a JSON file of many numbers, a line for each top-level key."""
    lines = [
        f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}"
        for key, value in values.items()
    ]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")

"""Which versions are loaded when, without loading any."""

import pytest

from m2m_tf.serving import model_store
from m2m_tf.serving.model_store import ModelStore, NotFound, State


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store of versions that can be loaded if they hold a file `whole`."""
    now = [0.0]
    loads = []

    class Model:
        def __init__(self, folder, max_rows):
            loads.append(int(folder.name))
            if not (folder / "whole").exists():
                raise OSError("half a model")
            self.version = int(folder.name)

    monkeypatch.setattr(model_store, "LoadedModel", Model)
    monkeypatch.setattr(model_store.time, "monotonic", lambda: now[0])
    made = ModelStore("clinics", tmp_path)
    made.now, made.loads = now, loads
    return made


def add(store, version, whole=True):
    folder = store.folder / str(version)
    folder.mkdir(exist_ok=True)
    if whole:
        (folder / "whole").touch()


def test_numbers_beyond_tf_serving_s_are_no_versions(store):
    add(store, 1)
    add(store, 2**63)
    store.refresh()
    assert states(store).keys() == {1}


def states(store):
    return {version: x.state for version, x in store.status().items()}


def test_the_newest_two_answer(store):
    for version in (1, 2, 10):
        add(store, version)
    store.refresh()
    assert store.loads == [10, 2]
    assert store.get().version == 10 and store.get(2).version == 2
    with pytest.raises(NotFound, match=r"no version 1. Loaded: \[2, 10\]"):
        store.get(1)
    store.refresh()
    assert store.loads == [10, 2]
    add(store, 11)
    store.refresh()
    assert set(states(store)) == {10, 11}


def test_an_older_one_answers_while_no_newer_can(store):
    add(store, 1)
    store.refresh()
    for version in (2, 3):
        add(store, version, whole=False)
    store.refresh()
    assert store.get().version == 1
    assert states(store) == {
        3: State.END,
        2: State.END,
        1: State.AVAILABLE,
    }
    # After a restart, too.
    again = ModelStore("clinics", store.folder)
    again.refresh()
    assert again.get().version == 1
    add(store, 2)
    store.now[0] += 1
    store.refresh()
    assert store.get().version == 2
    assert set(states(store)) == {3, 2}


def test_a_broken_version_is_tried_again_ever_more_rarely(store):
    add(store, 1, whole=False)
    tries = []
    for second in range(400):
        store.now[0] = second
        before = len(store.loads)
        store.refresh()
        if len(store.loads) > before:
            tries.append(second)
    assert tries[:7] == [0, 1, 3, 7, 15, 31, 63]
    assert all(b - a == 60 for a, b in zip(tries[6:], tries[7:]))
    # Forever: the time must not overflow.
    for _ in range(1200):
        store.now[0] += 60
        store.refresh()
    add(store, 1)
    store.now[0] += 60
    store.refresh()
    assert store.get().version == 1


def test_nothing_is_dropped_while_the_folder_is_away(store):
    add(store, 1)
    store.refresh()
    away = store.folder.rename(store.folder.with_name("away"))
    with pytest.raises(FileNotFoundError):
        store.refresh()
    assert store.get().version == 1
    away.rename(store.folder)
    (store.folder / "1" / "whole").unlink()
    (store.folder / "1").rmdir()
    store.refresh()
    with pytest.raises(NotFound, match="no version yet"):
        store.get()

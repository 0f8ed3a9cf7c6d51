"""One local server for all tests of this folder."""

import socket

import pytest
from local_server import ROWS, running

from m2m_tf.data import schema
from m2m_tf.serving.model_store import LoadedModel


@pytest.fixture(scope="session")
def server(exported):
    options = ("--max-bytes", "2000000", "--body-seconds", "1")
    with running(exported, *options) as process:
        yield process


@pytest.fixture(scope="session")
def raw(clinic_data):
    batch = next(iter(clinic_data.raw("test", ROWS).as_numpy_iterator()))
    return {name: batch[name] for name in schema.raw_features(clinic_data.spec)}


@pytest.fixture(scope="session")
def expected(exported, raw):
    told = LoadedModel(exported / "1").run("predict", raw)
    return {name: values[:, 0] for name, values in told.items()}


@pytest.fixture
def free_ports():
    """Two ports that nobody listens on."""
    with socket.socket() as one, socket.socket() as other:
        for taken in (one, other):
            taken.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]

"""`m2m-tf serve`: TF Serving's wire API for laptops and tests.

Production runs TF Serving itself. What a client sees is the same: gRPC
PredictionService and ModelService, REST, and Prometheus metrics.
"""

import concurrent.futures
import dataclasses
import logging
import os
import pathlib
import signal
import socket

import grpc
import uvicorn

from m2m_tf.serving.grpc_service import BadBytes, add_services
from m2m_tf.serving.model_store import MAX_ROWS, ModelStore
from m2m_tf.serving.rest_service import make_app
from m2m_tf.versions import versions_of

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """Where and within which limits to serve.

    Args:
        host: Address; loopback unless told otherwise, since nobody is asked
            who they are.
        rest_port: Port of REST and metrics; 0 takes a free one.
        grpc_port: Port of gRPC; 0 takes a free one.
        max_bytes: Largest request.
        max_rows: Most rows of a request.
        body_seconds: Most seconds that a REST request's body may take.
        grace_seconds: Seconds that requests in flight have at the end.
    """

    host: str = "127.0.0.1"
    rest_port: int = 8501
    grpc_port: int = 8500
    max_bytes: int = 64 * 2**20
    max_rows: int = MAX_ROWS
    body_seconds: float = 30.0
    grace_seconds: int = 10

    def __post_init__(self):
        for name in ("rest_port", "grpc_port"):
            port = getattr(self, name)
            # gRPC would take the rest of a division by 65536.
            if not 0 <= port < 2**16:
                raise ValueError(
                    f"`{name}` must be from 0 to 65535. Received: {port}."
                )


def serve(
    folder: str | os.PathLike,
    name: str | None = None,
    settings: ServerSettings | None = None,
    report=print,
) -> None:
    """Serves the versions in a folder until SIGTERM or Ctrl-C.

    Requests in flight are answered before it returns.

    Args:
        folder: Folder of the model's versions.
        name: Name that the model is asked by; the folder's by default.
        settings: Addresses and limits.
        report: Called with the addresses once requests are answered.

    Raises:
        FileNotFoundError: If the folder does not exist.
        OSError: If a port is taken.
    """
    settings = settings or ServerSettings()
    # A link is followed anew at each look, and gives the name.
    folder = pathlib.Path(os.path.abspath(folder))
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder. Give the folder of versions that "
            "`m2m-tf push` has written."
        )
    store = ModelStore(name or folder.name, folder, settings.max_rows)
    grpc_server, grpc_port = _make_grpc(store, settings)
    # uvicorn ends gracefully at a signal and then raises it again.
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        listener = _listen(settings)
        # Nobody is answered, on either port, before there is what to answer.
        store.start()
        if not store.status():
            log.warning(_nothing_there(folder))
        grpc_server.start()
        config = uvicorn.Config(
            make_app(store, settings.max_bytes, settings.body_seconds),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=settings.grace_seconds,
        )
        port = listener.getsockname()[1]
        addresses = (
            f"serving {store.name!r}: REST http://{_shown(settings)}:{port}"
            f"/v1/models/{store.name}, gRPC {_shown(settings)}:{grpc_port}"
        )
        _Server(config, lambda: report(addresses)).run([listener])
    except (_Stopped, KeyboardInterrupt):
        log.info("stopping")
    finally:
        signal.signal(signal.SIGTERM, before)
        grpc_server.stop(settings.grace_seconds).wait()
        if store.started:
            # A version that is being loaded is no reason to stay.
            store.stop(settings.grace_seconds)


def _nothing_there(folder):
    text = f"{folder}: holds no version yet; waiting for `m2m-tf push`."
    meant = [
        path.name
        for path in sorted(folder.iterdir())
        if path.is_dir() and versions_of(path)
    ]
    if meant:
        text += f" Did you mean {folder / meant[0]}?"
    return text


class _Stopped(BaseException):
    """SIGTERM; no error that a version's loading would be forgiven."""


def _stop(*_):
    raise _Stopped


class _Server(uvicorn.Server):
    """Says so once it answers."""

    def __init__(self, config, on_start):
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets=None):
        await super().startup(sockets)
        self._on_start()


def _listen(settings):
    # uvicorn would end the process if the port were taken. The protocol is
    # named because asyncio sends at once (TCP_NODELAY) only where it is: an
    # answer would else wait 40 ms for the caller's acknowledgement.
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.rest_port))
        listener.listen()
        return listener
    except OSError as error:
        listener.close()
        raise OSError(
            f"{_shown(settings)}:{settings.rest_port}: cannot be listened on: "
            f"{error.strerror}."
        ) from error


def _shown(settings):
    """The host as it stands before a port."""
    return f"[{settings.host}]" if ":" in settings.host else settings.host


def _make_grpc(store, settings):
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(2 * (os.cpu_count() or 1)),
        options=[
            ("grpc.max_receive_message_length", settings.max_bytes),
            ("grpc.so_reuseport", 0),
        ],
        interceptors=[BadBytes()],
    )
    add_services(server, store)
    address = f"{_shown(settings)}:{settings.grpc_port}"
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"{address}: cannot be listened on.") from error
    return server, port

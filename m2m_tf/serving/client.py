"""Asks TF Serving, or the local server, for forecasts: tables in, table out."""

import datetime as dt
import json
import time
import urllib.parse
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
import tensorflow as tf

try:
    import grpc
    import httpx
    import orjson
    from tensorflow_serving.apis import (
        get_model_metadata_pb2,
        predict_pb2,
        prediction_service_pb2_grpc,
    )
except ModuleNotFoundError as missing:
    raise ImportError(
        f"The client needs {missing.name}: pip install 'm2m_tf[serve]', or "
        "'.[serve]' in the repository."
    ) from missing

from m2m_tf.data import schema
from m2m_tf.signatures import (
    PREDICT,
    SIGNATURE_DEF,
    default_value,
    json_text,
)

ROWS_PER_REQUEST = 1024
_FIRST_WAIT = 0.1


class RequestError(ValueError):
    """A request that the server refuses: asking again would not help."""


class ServerUnavailable(ConnectionError):
    """A server that has not answered within the deadline."""


class Client:
    """One served model.

    Args:
        address: `http://host:8501` (or `https://`) for REST, `grpc://host:8500`
            for gRPC.
        name: Name of the model.
        version: Version to ask; None: whichever the server thinks best.
        seconds: Most seconds that a call may take, however many rows it has,
            retries included.

    Raises:
        ValueError: If the address is of neither kind.

    Example:

    >>> with Client("http://localhost:8501", "demo") as client:
    ...     forecasts = client.predict(rows)
    """

    def __init__(
        self,
        address: str,
        name: str,
        version: int | None = None,
        seconds: float = 30.0,
    ):
        parts = urllib.parse.urlsplit(address)
        if parts.scheme in ("http", "https"):
            self._transport = _Rest(address, name, version)
        elif parts.scheme == "grpc":
            self._transport = _Grpc(parts.netloc, name, version)
        else:
            raise ValueError(
                "`address` must begin with http://, https:// or grpc://. "
                f"Received: {address!r}"
            )
        self._address = address
        self._seconds = seconds
        self._specs: dict[str, dict[str, tf.TensorSpec]] | None = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._transport.close()

    def inputs(self, signature: str = PREDICT) -> dict[str, tf.TensorSpec]:
        """Name → dtype and shape of each input of a signature.

        Raises:
            RequestError: If there is no such model or signature.
            ServerUnavailable: If the server does not answer in time.
        """
        return self._inputs(signature, time.monotonic() + self._seconds)

    def _inputs(self, signature, deadline):
        if self._specs is None:
            self._specs = self._retried(deadline, self._transport.signatures)
        if signature not in self._specs:
            raise RequestError(
                f"`signature` must be one of {sorted(self._specs)}. "
                f"Received: {signature!r}."
            )
        return self._specs[signature]

    def predict(
        self,
        rows: pl.DataFrame | Mapping | Sequence[Mapping],
        signature: str = PREDICT,
    ) -> pl.DataFrame:
        """Forecasts of rows, in their order.

        More than `ROWS_PER_REQUEST` rows are asked in several requests. Where
        a new version may be published meanwhile and all forecasts must be of
        one, give the client its `version`.

        Args:
            rows: Raw features: a table or dict of columns, or a list of
                dicts. What may be missing in a `tf.Example` may be missing
                here (days observed, the known future, attributes). `cutoff`
                may be dates.
            signature: `predict`, `predict_all_scenarios` or `explain`.

        Returns:
            A column for each output, by name. With one value a row it holds
            numbers, else lists.

        Raises:
            RequestError: If the server refuses the rows, or one is not told.
            ServerUnavailable: If the server does not answer in time.
        """
        deadline = time.monotonic() + self._seconds
        columns = _columns(rows)
        known = self._specs
        try:
            return self._asked(columns, signature, deadline)
        except RequestError:
            # A version that was published since may take other inputs.
            self._specs = None
            if known is None:
                raise
            if known.get(signature) == self._inputs(signature, deadline):
                raise
        return self._asked(columns, signature, deadline)

    def _asked(self, columns, signature, deadline):
        specs = self._inputs(signature, deadline)
        if unknown := sorted(set(columns) - set(specs)):
            raise RequestError(
                f"{unknown} are not inputs of {signature!r}, which takes "
                f"{sorted(specs)}."
            )
        for name, values in columns.items():
            if isinstance(values, str | bytes):
                raise RequestError(
                    f"{name!r} must hold a value for each row. Received: "
                    f"{values[:50]!r}."
                )
        counts = {name: len(values) for name, values in columns.items()}
        count = next(iter(counts.values()), 0)
        if not count:
            raise RequestError("`rows` holds no row.")
        if set(counts.values()) != {count}:
            raise RequestError(
                f"Columns must have as many rows each. Received: {counts}."
            )
        arrays = {
            name: _array(name, columns, spec, count, specs)
            for name, spec in specs.items()
        }
        parts = []
        for first in range(0, count, ROWS_PER_REQUEST):
            chunk = {
                k: x[first : first + ROWS_PER_REQUEST]
                for k, x in arrays.items()
            }
            outputs = self._retried(
                deadline, self._transport.predict, signature, chunk
            )
            parts.append(
                pl.DataFrame(
                    {
                        name: _series(values)
                        for name, values in sorted(outputs.items())
                    }
                )
            )
        return pl.concat(parts)

    def _retried(self, deadline, function, *arguments):
        wait = _FIRST_WAIT
        while True:
            left = deadline - time.monotonic()
            try:
                if left <= 0:
                    raise TimeoutError("no time left")
                return function(*arguments, seconds=left)
            except (ConnectionError, TimeoutError) as error:
                if time.monotonic() + wait >= deadline:
                    raise ServerUnavailable(
                        f"{self._address}: no answer within "
                        f"{self._seconds:g} s: {error}"
                    ) from error
            time.sleep(wait)
            wait *= 2


class _Rest:
    def __init__(self, address, name, version):
        self._client = httpx.Client(base_url=address)
        self._path = f"/v1/models/{urllib.parse.quote(name, safe='')}"
        if version is not None:
            self._path += f"/versions/{version}"
        # Of a signature with one output, which an answer does not name.
        self._only_output = {}

    def close(self):
        self._client.close()

    def signatures(self, seconds):
        told = self._ask("GET", f"{self._path}/metadata", None, seconds)
        found = _told(told, "metadata", SIGNATURE_DEF, SIGNATURE_DEF)
        self._only_output = {
            signature: next(iter(outputs))
            for signature, definition in found.items()
            if len(outputs := definition.get("outputs", ())) == 1
        }
        return {
            signature: {
                name: tf.TensorSpec(
                    [
                        None if int(axis["size"]) < 0 else int(axis["size"])
                        for axis in info["tensor_shape"].get("dim", ())
                    ],
                    getattr(tf, info["dtype"].removeprefix("DT_").lower(), None)
                    or tf.float32,
                )
                for name, info in definition["inputs"].items()
            }
            for signature, definition in found.items()
        }

    def predict(self, signature, arrays, seconds):
        body = {
            "signature_name": signature,
            "inputs": {name: _json(values) for name, values in arrays.items()},
        }
        told = self._ask("POST", f"{self._path}:predict", body, seconds)
        outputs = _told(told, "outputs")
        if not isinstance(outputs, dict):
            outputs = {self._only_output.get(signature, "outputs"): outputs}
        return {name: np.array(values) for name, values in outputs.items()}

    def _ask(self, method, path, body, seconds):
        content = None
        if body is not None:
            content = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        deadline = time.monotonic() + seconds
        parts = []
        try:
            # Its timeout is of each part alone.
            with self._client.stream(
                method, path, content=content, timeout=seconds
            ) as answer:
                for part in answer.iter_bytes():
                    parts.append(part)
                    if time.monotonic() > deadline:
                        raise TimeoutError("the answer was not whole")
        except httpx.TransportError as error:
            raise ConnectionError(str(error)) from error
        told = b"".join(parts)
        if answer.status_code in (429, 502, 503, 504):
            raise ConnectionError(f"status {answer.status_code}")
        if answer.status_code != 200:
            try:
                text = orjson.loads(told)["error"]
            except (ValueError, KeyError, TypeError):
                text = _quoted(told)
            raise RequestError(f"status {answer.status_code}: {text}")
        try:
            return orjson.loads(told)
        except orjson.JSONDecodeError as error:
            raise RequestError(
                f"{answer.url}: answers no JSON. Is it TF Serving's REST "
                f"address? Received: {_quoted(told)}"
            ) from error


class _Grpc:
    def __init__(self, address, name, version):
        self._channel = grpc.insecure_channel(
            address,
            options=[
                ("grpc.max_receive_message_length", -1),
                # By default it waits for up to two minutes before it tries a
                # server again that was away: longer than most deadlines.
                ("grpc.max_reconnect_backoff_ms", 2000),
            ],
        )
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(
            self._channel
        )
        self._name, self._version = name, version

    def close(self):
        self._channel.close()

    def signatures(self, seconds):
        request = get_model_metadata_pb2.GetModelMetadataRequest()
        request.metadata_field.append(SIGNATURE_DEF)
        told = self._ask(self._stub.GetModelMetadata, request, seconds)
        found = get_model_metadata_pb2.SignatureDefMap()
        told.metadata[SIGNATURE_DEF].Unpack(found)
        return {
            signature: {
                name: tf.TensorSpec(
                    tf.TensorShape(info.tensor_shape),
                    tf.dtypes.as_dtype(info.dtype),
                )
                for name, info in definition.inputs.items()
            }
            for signature, definition in found.signature_def.items()
        }

    def predict(self, signature, arrays, seconds):
        request = predict_pb2.PredictRequest()
        request.model_spec.signature_name = signature
        for name, values in arrays.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
        told = self._ask(self._stub.Predict, request, seconds)
        outputs = {
            name: tf.make_ndarray(tensor)
            for name, tensor in told.outputs.items()
        }
        return {
            name: np.vectorize(bytes.decode, otypes=[object])(values)
            if values.dtype == object
            else values
            for name, values in outputs.items()
        }

    def _ask(self, method, request, seconds):
        request.model_spec.name = self._name
        if self._version is not None:
            request.model_spec.version.value = self._version
        try:
            return method(request, timeout=seconds)
        except grpc.RpcError as error:
            code = error.code()
            if code in (
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.DEADLINE_EXCEEDED,
            ):
                raise ConnectionError(error.details()) from error
            raise RequestError(f"{code.name}: {error.details()}") from error


def _told(answer, *keys):
    """What an answer holds under keys within keys."""
    value = answer
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise RequestError(
                f"The answer has no {'.'.join(keys)}. Is it TF Serving's? "
                f"Received: {_quoted(orjson.dumps(answer))}"
            )
        value = value[key]
    return value


def _quoted(content):
    return content[:500].decode(errors="replace")


def _columns(rows):
    if isinstance(rows, pl.DataFrame):
        return {name: rows[name].to_list() for name in rows.columns}
    if isinstance(rows, Mapping):
        return dict(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    for name in names:
        lacking = [i for i, row in enumerate(rows) if name not in row]
        if lacking:
            raise RequestError(
                f"{name!r} is missing in {len(lacking)} of {len(rows)} rows, "
                f"the first is row {lacking[0]}."
            )
    return {name: [row[name] for row in rows] for name in names}


def _array(name, columns, spec, count, specs):
    """A column as the signature takes it, or the default of one left out."""
    shape = spec.shape.as_list()[1:]
    if name not in columns:
        return _default(name, shape, spec, count, specs)
    values = columns[name]
    try:
        if spec.dtype == tf.string:
            # As objects: NumPy's own bytes lose the zeros at their end.
            texts = np.asarray(values, object)
            flat = ["" if x is None else x for x in texts.ravel().tolist()]
            encoded = np.empty(len(flat), object)
            encoded[:] = [
                x if isinstance(x, bytes) else x.encode() for x in flat
            ]
            return encoded.reshape(texts.shape)
        if spec.dtype.is_integer:
            return _whole_numbers(values, spec.dtype.as_numpy_dtype)
        return np.array(values, spec.dtype.as_numpy_dtype)
    except (TypeError, ValueError, AttributeError) as error:
        raise RequestError(
            f"{name!r} must be {spec.dtype.name} of shape "
            f"[{', '.join(map(str, ['rows', *shape]))}]: {error}"
        ) from error


def _whole_numbers(values, dtype):
    """Integers, or dates as days since 1970-01-01, as `cutoff` counts them."""
    values = np.asarray(values)
    dates = values.ravel().tolist() if values.dtype == object else ()
    if any(getattr(date, "tzinfo", None) for date in dates):
        raise ValueError("instants in a time zone are no days; give its dates")
    if values.dtype.kind == "M" or any(isinstance(x, dt.date) for x in dates):
        if None in dates:
            raise ValueError("a date is missing")
        days = values.astype("datetime64[D]")
        if np.isnat(days).any():
            raise ValueError("a date is missing")
        return days.astype(dtype)
    # NaN has no integer, and the comparison finds it.
    with np.errstate(invalid="ignore"):
        whole = values.astype(dtype)
    if values.dtype.kind in "fui" and (whole != values).any():
        raise ValueError(f"received {values[whole != values][0]}")
    return whole


def _default(name, shape, spec, count, specs):
    value = None
    if schema.PERFORMANCE_SEQUENCE in specs:
        days = specs[schema.PERFORMANCE_SEQUENCE].shape[-2]
        value = default_value(name, shape, spec.dtype.name, days)
    if value is None:
        raise RequestError(f"Input {name!r} is missing in `rows`.")
    return np.repeat(value[None], count, axis=0)


def _json(values):
    if values.dtype.kind in "SOU":
        flat = [json_text(value) for value in values.ravel().tolist()]
        return _nested(flat, values.shape)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        # TF Serving reads the word NaN, which orjson does not write.
        return orjson.Fragment(json.dumps(values.tolist()))
    return np.ascontiguousarray(values)


def _nested(flat, shape):
    array = np.empty(len(flat), object)
    array[:] = flat
    return array.reshape(shape).tolist()


def _series(values):
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    return values.tolist()

"""TF Serving's REST API over a `ModelStore`.

Paths, request and answer formats are those of TF Serving's documentation:
https://www.tensorflow.org/tfx/serving/api_rest
"""

import asyncio
import base64
import json
import logging

import numpy as np
import orjson
import prometheus_client
from google.protobuf import json_format
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from m2m_tf.serving.grpc_service import model_status, regress, signature_map
from m2m_tf.serving.model_store import (
    InvalidRequest,
    ModelStore,
    NotFound,
    shown,
)
from m2m_tf.serving.monitoring import observed
from m2m_tf.signatures import SERVING_DEFAULT, json_text, serialize_example

log = logging.getLogger(__name__)
METRICS_PATH = "/monitoring/prometheus/metrics"
_VERBS = ("predict", "regress")
# Of a version's number in int64.
_MOST_DIGITS = 19


def make_app(
    store: ModelStore, max_bytes: int, body_seconds: float
) -> Starlette:
    """The REST API as an ASGI application.

    Args:
        store: The model's versions.
        max_bytes: Largest body.
        body_seconds: Most seconds that a body may take to arrive.
    """

    async def ask(request: Request):
        with observed("rest", "unknown") as seen:
            try:
                version, verb = _route(store, request.path_params["rest"])
                seen.method = verb or "status"
                if request.method == "POST":
                    if verb not in _VERBS:
                        raise HTTPException(405, "GET it, or POST to :predict")
                    body = await _body(request, max_bytes, body_seconds)
                    answer = await run_in_threadpool(
                        _answer, store, version, verb, body
                    )
                elif verb in _VERBS:
                    raise HTTPException(405, f":{verb} takes a POST")
                elif verb == "metadata":
                    answer = await run_in_threadpool(_metadata, store, version)
                else:
                    answer = _to_dict(model_status(store, version))
                return Response(
                    orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY),
                    media_type="application/json",
                )
            except InvalidRequest as error:
                status, text = 400, shown(error)
            except NotFound as error:
                status, text = 404, shown(error)
            except HTTPException as error:
                status, text = error.status_code, error.detail
            except ClientDisconnect:
                seen.status = "CANCELLED"
                return Response(status_code=499)  # Nobody reads it.
            except Exception:
                log.exception("%s failed", seen.method)
                status, text = 500, "see the server's log"
            seen.status = str(status)
            # What is left of a body that was not read would be taken for the
            # next request.
            headers = {"connection": "close"} if status in (408, 413) else None
            return JSONResponse({"error": text}, status, headers)

    async def metrics(_):
        return Response(
            prometheus_client.generate_latest(),
            media_type=prometheus_client.CONTENT_TYPE_LATEST,
        )

    async def not_found(request, error):
        return JSONResponse({"error": error.detail}, error.status_code)

    return Starlette(
        routes=[
            Route(METRICS_PATH, metrics),
            Route("/v1/models/{rest:path}", ask, methods=["GET", "POST"]),
        ],
        exception_handlers={HTTPException: not_found},
    )


def _route(store, path):
    """`NAME[/versions/V][/metadata|:verb]` → version (or None) and verb."""
    path, _, verb = path.partition(":")
    parts = path.split("/")
    if parts[-1] == "metadata" and not verb:
        verb = parts.pop()
    if parts[0] != store.name:
        raise NotFound(
            f"Model {parts[0]!r} is not served here; {store.name!r} is."
        )
    version = None
    if len(parts) == 3 and parts[1] == "versions":
        # Not `isdecimal`: it holds for digits of other scripts, too.
        if not (parts[2].isascii() and parts[2].isdigit()):
            raise InvalidRequest(
                f"A version is a number. Received: {parts[2]!r}."
            )
        if len(parts[2]) > _MOST_DIGITS:
            raise NotFound(f"There is no version {parts[2][:_MOST_DIGITS]}….")
        version = int(parts[2])
    elif len(parts) != 1:
        raise NotFound(
            "Paths are /v1/models/NAME[/versions/V][/metadata|:predict|"
            ":regress]."
        )
    if verb not in ("", "metadata", *_VERBS):
        raise NotFound(f"There is no verb {verb!r}, only {list(_VERBS)}.")
    return version, verb


async def _body(request, max_bytes, seconds):
    """The whole body, if it is small enough and comes in time."""
    too_large = HTTPException(413, f"A body may have {max_bytes} bytes.")
    given = request.headers.get("content-length", "0")
    if given.isdigit() and int(given) > max_bytes:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size > max_bytes:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise HTTPException(
            408, f"The body has not come within {seconds} s."
        ) from None
    return b"".join(parts)


def _answer(store, version, verb, body):
    asked = _parsed(body)
    if not isinstance(asked, dict):
        raise InvalidRequest("The body must be a JSON object.")
    model = store.get(version)
    signature = asked.get("signature_name") or SERVING_DEFAULT
    if not isinstance(signature, str):
        raise InvalidRequest("`signature_name` must be a string.")
    if verb == "regress":
        return {"results": regress(model, signature, _examples(asked))}
    specs = model.inputs(signature)
    by_row = "instances" in asked
    if by_row == ("inputs" in asked):
        raise InvalidRequest(
            "Give either `instances` (a list of rows) or `inputs` (columns)."
        )
    columns = _columns(asked["instances"], specs) if by_row else asked["inputs"]
    if not isinstance(columns, dict):
        columns = {_only(specs): columns}
    inputs = {
        name: _array(name, values, specs[name]) if name in specs else values
        for name, values in columns.items()
    }
    outputs = {
        name: _shown(values)
        for name, values in model.run(signature, inputs).items()
    }
    if not by_row:
        return {"outputs": _unwrapped(outputs)}
    rows = [
        _unwrapped(dict(zip(outputs, row, strict=True)))
        for row in zip(*outputs.values(), strict=True)
    ]
    return {"predictions": rows}


def _parsed(body):
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        # It is strict, where NaN and infinity pass, as with TF Serving.
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"The body is no JSON: {error}") from error


def _columns(rows, specs):
    """Rows → columns; a row of a single input may leave its name out."""
    if not isinstance(rows, list) or not rows:
        raise InvalidRequest("`instances` must be a list of at least one row.")
    names = None
    columns = {}
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or set(row) == {"b64"}:
            row = {_only(specs): row}
        if names is None:
            names = set(row)
            columns = {name: [] for name in row}
        if set(row) != names:
            raise InvalidRequest(
                f"Row {index} of `instances` has {sorted(row)}, the first one "
                f"{sorted(names)}."
            )
        for name, value in row.items():
            columns[name].append(value)
    return columns


def _only(specs):
    if len(specs) != 1:
        raise InvalidRequest(
            f"Name the inputs: the signature takes {sorted(specs)}."
        )
    return next(iter(specs))


def _array(name, values, spec):
    """Nested lists → an array of the input's dtype."""
    kind = spec.dtype.name
    if kind != "string":
        # Numbers all through, as they nearly always are: at once.
        try:
            array = np.array(values)
        except (ValueError, OverflowError):
            array = None  # Told precisely below.
        if array is not None and array.dtype.kind in _AT_ONCE[kind[:3]]:
            return array.astype(kind)
    flat = np.array(values, dtype=object)
    if any(isinstance(value, list) for value in flat.ravel()):
        raise InvalidRequest(f"{name!r} has rows of different shapes.")
    convert = _CONVERTERS[kind if kind == "string" else kind[:3]]
    try:
        converted = [convert(value) for value in flat.ravel()]
        dtype = object if kind == "string" else kind
        return np.array(converted, dtype).reshape(flat.shape)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(f"{name!r} must be {kind}: {error}.") from error


def _text(value):
    if isinstance(value, dict) and set(value) == {"b64"}:
        return base64.b64decode(value["b64"], validate=True)
    if not isinstance(value, str):
        raise TypeError(f'{value!r} is neither a string nor {{"b64": ...}}')
    return value.encode()


def _whole(value):
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is no whole number")
    return value


def _number(value):
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is no number")
    return float(value)


_CONVERTERS = {"string": _text, "int": _whole, "flo": _number}
# Kinds of NumPy arrays of numbers that need no look at each.
_AT_ONCE = {"int": "i", "flo": "iuf"}


def _examples(asked):
    """`examples` and `context` of the Regress API as serialized ones."""
    rows = asked.get("examples")
    context = asked.get("context", {})
    if not isinstance(rows, list) or not rows or not isinstance(context, dict):
        raise InvalidRequest(
            "`examples` must be a list of at least one object of features."
        )
    serialized = []
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InvalidRequest(f"Example {index} is no object of features.")
        features = {
            name: _feature(index, name, value)
            for name, value in (context | row).items()
        }
        try:
            serialized.append(serialize_example(features))
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                f"Example {index}: the name of a feature is no text: {error}."
            ) from error
    return serialized


def _feature(index, name, value):
    values = value if isinstance(value, list) else [value]
    flat = np.array(values, dtype=object).ravel()
    try:
        if all(isinstance(x, (str, dict)) for x in flat):
            return np.array([_text(x) for x in flat], object)
        if all(isinstance(x, int) for x in flat):
            return np.array([_whole(x) for x in flat], "int64")
        return np.array([_number(x) for x in flat], "float32")
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(
            f"Feature {name!r} of example {index}: {error}."
        ) from error


def _shown(values):
    """What JSON can hold: numbers stay the array that they are."""
    if values.dtype == object:
        return np.vectorize(json_text, otypes=[object])(values).tolist()
    return np.ascontiguousarray(values)


def _unwrapped(outputs):
    """A single output goes without its name, as TF Serving has it."""
    return next(iter(outputs.values())) if len(outputs) == 1 else outputs


def _metadata(store, version):
    model = store.get(version)
    return {
        "model_spec": {
            "name": store.name,
            "signature_name": "",
            "version": str(model.version),
        },
        "metadata": {"signature_def": _to_dict(signature_map(model))},
    }


def _to_dict(message):
    return json_format.MessageToDict(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )

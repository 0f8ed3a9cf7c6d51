"""`m2m-tf serve` as a process of its own, and its address."""

import contextlib
import json
import re
import subprocess
import sys
import time

import grpc
import httpx
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

NAME = "clinics"
# Rows of a request.
ROWS = 4


class Server:
    """A running server, by default of ours."""

    def __init__(self, rest, grpc_address, process=None):
        self.process = process
        self.addresses = {"rest": rest, "grpc": f"grpc://{grpc_address}"}
        self.rest = httpx.Client(base_url=rest, timeout=60)
        self.channel = grpc.insecure_channel(grpc_address)
        self.predictions = prediction_service_pb2_grpc.PredictionServiceStub(
            self.channel
        )
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)

    def post(self, verb, body, **options):
        content = body if isinstance(body, bytes) else json.dumps(body)
        return self.rest.post(
            f"/v1/models/{NAME}:{verb}", content=content, **options
        )


@contextlib.contextmanager
def running(folder, *options):
    command = [sys.executable, "-m", "pipelines.cli", "serve", str(folder)]
    command += ["--name", NAME, "--rest-port", "0", "--grpc-port", "0"]
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, text=True
    )
    try:
        # Loading TensorFlow takes seconds; a server that fails ends the read.
        line = process.stdout.readline()
        rest, address = re.search(
            r"(http://\S+?)/v1/.*gRPC (\S+)", line
        ).groups()
        yield Server(rest, address, process)
    finally:
        process.terminate()
        assert process.wait(60) == 0


def wait_for(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def plain(raw):
    """Columns as JSON values; NaN, as TF Serving takes it, as it is."""
    return {
        name: [x.decode() for x in values]
        if values.dtype == object
        else values.tolist()
        for name, values in raw.items()
    }


def by_row(raw):
    columns = plain(raw)
    return [
        dict(zip(columns, values, strict=True))
        for values in zip(*columns.values(), strict=True)
    ]


def predict_request(inputs, signature="predict", **spec):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = spec.get("name", NAME)
    request.model_spec.signature_name = signature
    if "version" in spec:
        request.model_spec.version.value = spec["version"]
    for name, values in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
    return request


def check_forecasts(told, expected):
    assert set(told) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(
            np.ravel(told[name]), values, rtol=1e-5, atol=1e-6
        )

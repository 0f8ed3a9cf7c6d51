"""`m2m-tf serve` as a process of its own, and its address."""

import contextlib
import json
import re
import subprocess
import sys
import time

import grpc
import httpx
from tensorflow_serving.apis import (
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

NAME = "clinics"
# Rows of a request.
ROWS = 4


class Server:
    """A running `m2m-tf serve`."""

    def __init__(self, process, rest, grpc_address):
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
            r"(http://[\d.:]+)/.*gRPC ([\d.:]+)", line
        ).groups()
        yield Server(process, rest, address)
    finally:
        process.terminate()
        assert process.wait(60) == 0


def wait_for(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)

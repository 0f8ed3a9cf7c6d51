"""What the local server adds to the bare SavedModel call.

    python benchmarks/serving.py saved_models/demo

Alternates bare calls in this process with REST and gRPC calls of the server,
a process of its own, and tells medians of the ratios. Rows are drawn at
random in the shapes of the model's contract: what they say costs nothing.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from m2m_tf import __version__, files
from m2m_tf.export import CONTRACT_FILE, draw_rows
from m2m_tf.serving.client import Client
from m2m_tf.serving.model_store import LoadedModel
from m2m_tf.versions import latest_version

BATCHES = (1, 16, 256)
SIGNATURE = "predict"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--calls", type=int, default=100, help="of each kind")
    parser.add_argument("--output", type=pathlib.Path, help="Markdown file")
    options = parser.parse_args()
    version = latest_version(options.model)
    contract = files.read_json(version / CONTRACT_FILE)
    bare = LoadedModel(version)
    command = [sys.executable, "-m", "pipelines.cli", "serve"]
    command += [str(version.parent), "--name", "model"]
    command += ["--rest-port", "0", "--grpc-port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        rest, rpc = re.search(
            r"(http://[\d.:]+)/.*gRPC ([\d.:]+)", server.stdout.readline()
        ).groups()
        with (
            Client(rest, "model") as by_rest,
            Client(f"grpc://{rpc}", "model") as by_grpc,
        ):
            table = [
                row
                for batch in BATCHES
                for row in measure(
                    bare, by_rest, by_grpc, contract, batch, options.calls
                )
            ]
    finally:
        server.terminate()
        server.wait(60)
    text = report(table, version, options)
    print(text)
    if options.output:
        files.write_text(options.output, text)


def measure(bare, by_rest, by_grpc, contract, batch, calls):
    """(batch, kind, seconds, ratio to the bare call, tail) of each kind."""
    columns = draw_rows(contract, batch)
    # The client's answer is a table; so is what a caller would make of it.
    kinds = {
        "bare": lambda: bare.run(SIGNATURE, columns),
        "gRPC": lambda: by_grpc._transport.predict(SIGNATURE, columns, 60),
        "gRPC, table in and out": lambda: by_grpc.predict(columns),
        "REST": lambda: by_rest._transport.predict(SIGNATURE, columns, 60),
        "REST, table in and out": lambda: by_rest.predict(columns),
    }
    seconds = {kind: [] for kind in kinds}
    for number in range(calls + 5):
        for kind, call in kinds.items():
            started = time.perf_counter()
            call()
            # The first calls open connections and fill caches.
            if number >= 5:
                seconds[kind].append(time.perf_counter() - started)
    base = np.array(seconds["bare"])
    for kind, values in seconds.items():
        ratio = np.median(np.array(values) / base)
        tail = np.quantile(values, 0.99) / np.median(base)
        yield batch, kind, np.median(values), ratio, tail


def report(table, version, options):
    lines = [
        "# Serving: what the local server adds to the bare call",
        "",
        f"`python benchmarks/serving.py {options.model}`, version "
        f"{version.name}, m2m_tf {__version__}, {os.cpu_count()} cores, "
        f"{options.calls} calls of each kind, alternating. Ratios are medians "
        "over pairs with the bare SavedModel call in the same run; the last "
        "column is the 99th percentile over the bare median.",
        "",
        "| rows | call | ms | ratio to bare | 99 % | rows/s |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for batch, kind, seconds, ratio, tail in table:
        lines.append(
            f"| {batch} | {kind} | {1000 * seconds:.2f} | {ratio:.2f} | "
            f"{tail:.2f} | {batch / seconds:,.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

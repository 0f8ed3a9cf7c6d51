r"""What batch scoring from tables adds to the bare SavedModel call.

    python benchmarks/batch_scoring.py saved_models/demo \
        runs/demo/tables/spec.yaml

Alternates scorings of all tables with bare calls on the same number of rows,
already in memory, in the same process and batches; tells medians of the
ratios. A scoring reads and validates the tables, cuts the windows, asks the
model and writes Parquet. `--copies` has every entity that many times, each
under an id of its own.
"""

import argparse
import dataclasses
import os
import pathlib
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import polars as pl
import tensorflow as tf

from m2m_tf import __version__, files
from m2m_tf.config import DatasetSpec
from m2m_tf.export import CONTRACT_FILE, draw_rows
from m2m_tf.serving import batch_scoring
from m2m_tf.signatures import PREDICT
from m2m_tf.versions import latest_version


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("spec", type=pathlib.Path, help="of tables to score")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--output", type=pathlib.Path, help="Markdown file")
    options = parser.parse_args()
    version = latest_version(options.model)
    spec = DatasetSpec.load(options.spec)
    contract = files.read_json(version / CONTRACT_FILE)
    size = batch_scoring.BATCH
    rows = draw_rows(contract, size)
    seconds = {"load": [], "bare": [], "scoring": []}
    with tempfile.TemporaryDirectory() as folder:
        if options.copies > 1:
            spec = copied(spec, options.copies, pathlib.Path(folder))
        for number in range(options.times + 1):
            started = time.perf_counter()
            model = tf.saved_model.load(str(version))
            predict = model.signatures[PREDICT]
            bare(predict, rows)
            loaded = time.perf_counter()
            path = pathlib.Path(folder, f"{number}.parquet")
            told = batch_scoring.score_tables(version, spec, spec.end, path)
            scored = time.perf_counter()
            for _ in range(-(-told.forecasts // size)):
                bare(predict, rows)
            # The first time fills caches.
            if number:
                seconds["load"].append(loaded - started)
                seconds["scoring"].append(scored - loaded)
                seconds["bare"].append(time.perf_counter() - scored)
    text = report(seconds, told.forecasts, version, options)
    print(text)
    if options.output:
        files.write_text(options.output, text)


def copied(spec, copies, folder):
    """The spec of tables in which every entity stands `copies` times."""
    paths = {}
    for table in ("panel", "profile"):
        rows = pl.read_parquet(getattr(spec, table))
        entity = pl.col(spec.entity).cast(pl.String)
        paths[table] = folder / f"{table}.parquet"
        pl.concat(
            [
                rows.with_columns(pl.format("{}_{}", entity, pl.lit(copy)))
                for copy in range(copies)
            ]
        ).write_parquet(paths[table])
    return dataclasses.replace(spec, **paths)


def bare(predict, rows):
    told = predict(**{name: tf.constant(x) for name, x in rows.items()})
    return {name: values.numpy() for name, values in told.items()}


def report(seconds, count, version, options):
    load, base, scoring = (
        np.array(seconds[kind]) for kind in ("load", "bare", "scoring")
    )
    lines = [
        "# Batch scoring: what tables add to the bare call",
        "",
        f"`python benchmarks/batch_scoring.py {options.model} {options.spec} "
        f"--copies {options.copies} --times {options.times}`, "
        f"version {version.name}, m2m_tf {__version__}, {os.cpu_count()} "
        f"cores, {count:,} forecasts, alternating. Ratios are medians over "
        "pairs with the bare call in the same run.",
        "",
        "| | s | ratio to bare | forecasts/s |",
        "|---|---:|---:|---:|",
    ]
    for kind, values in (
        ("bare SavedModel call, NumPy rows in memory", base),
        ("scoring of the tables, whole", scoring),
        ("the same without loading the model", scoring - load),
    ):
        middle = np.median(values)
        lines.append(
            f"| {kind} | {middle:.2f} | {np.median(values / base):.2f} | "
            f"{count / middle:,.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

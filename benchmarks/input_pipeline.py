r"""What the input pipeline delivers beside what training takes.

    python benchmarks/input_pipeline.py runs/demo/tables/spec.yaml \
        runs/demo/records

Passes of the training batches alone alternate with training steps of the
`small` preset on batches that are in memory already; told are medians of the
ratios. The memory of a pass is the peak of a process that does nothing else,
with the records once and ten times over, in blocks of `--entities`, so that
both passes take several blocks.
"""

import argparse
import os
import pathlib
import resource
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from m2m_tf import __version__, files

BATCH = 256
STEPS = 100
COPIES = 10


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("spec", type=pathlib.Path)
    parser.add_argument("records", type=pathlib.Path, help="`run` left them")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--entities", type=int, default=128)
    parser.add_argument("--output", type=pathlib.Path, help="Markdown file")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        print(peak_of_pass(options))
        return
    peaks = {copies: peak(options, copies) for copies in (0, 1, COPIES)}
    text = report(*speeds(options), peaks, options)
    print(text)
    if options.output:
        files.write_text(options.output, text)


def load(options):
    import tensorflow as tf

    from m2m_tf.config import DatasetSpec
    from m2m_tf.data.dataset import ForecastData

    tf.keras.utils.set_random_seed(1)
    return ForecastData.load(DatasetSpec.load(options.spec), options.records)


def speeds(options):
    """Rows a second of passes and of steps; seconds to the first batches."""
    from m2m_tf.config import MODEL_PRESETS, TRAINING_PRESETS
    from m2m_tf.models import build_model
    from m2m_tf.training import compile_model

    data = load(options)
    model = build_model(
        data.preprocessor.model_inputs,
        MODEL_PRESETS["small"],
        data.preprocessor.statistics.label_means,
    )
    compile_model(model, data, TRAINING_PRESETS["small"], STEPS)
    batches = data.train(BATCH)
    kept = batches.take(STEPS).cache()
    steps = sum(1 for _ in kept)
    model.fit(kept, verbose=0, shuffle=False)
    passes, trained, first = [], [], []
    for _ in range(options.turns):
        started = time.perf_counter()
        count = 0
        for _ in batches:
            count += 1
            if count == 1:
                first.append(time.perf_counter() - started)
        passed = time.perf_counter()
        model.fit(kept, verbose=0, shuffle=False)
        passes.append(count * BATCH / (passed - started))
        trained.append(steps * BATCH / (time.perf_counter() - passed))
    return np.array(passes), np.array(trained), np.array(first), count


def peak(options, copies):
    arguments = [options.spec, options.records, "--worker", copies]
    arguments += ["--entities", options.entities]
    result = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(result.stdout)


def peak_of_pass(options):
    """MiB of a process that reads the records as often as told."""
    from m2m_tf.data import input_pipeline

    data = load(options)
    batches = input_pipeline.training_batches(
        data.records.repeat(max(options.worker, 1)),
        data.spec,
        data.preprocessor,
        data.splits.train,
        BATCH,
        options.entities,
    )
    # Without a pass only the first batches are read.
    for _ in batches if options.worker else batches.take(3):
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(passes, trained, first, count, peaks, options):
    lines = [
        "# Input pipeline",
        "",
        f"`python benchmarks/input_pipeline.py {options.spec} "
        f"{options.records} --turns {options.turns}`, m2m_tf {__version__}, "
        f"{os.cpu_count()} cores, batches of {BATCH}, {count:,} batches a "
        "pass. Passes and training steps alternate; medians.",
        "",
        "| | rows/s | ratio to training |",
        "|---|---:|---:|",
        f"| training of the `small` preset, batches in memory | "
        f"{np.median(trained):,.0f} | 1.0 |",
        f"| input alone, a whole pass | {np.median(passes):,.0f} | "
        f"{np.median(passes / trained):.1f} |",
        "",
        f"The first batch of a pass comes after {np.median(first):.2f} s.",
        "",
        f"Peak memory of a process, blocks of {options.entities:,} entities: "
        f"{peaks[0]:,.0f} MiB after three batches, {peaks[1]:,.0f} MiB after "
        f"a pass, {peaks[COPIES]:,.0f} MiB after a pass over {COPIES} times "
        f"the data ({peaks[COPIES] / peaks[1] - 1:+.1%}).",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

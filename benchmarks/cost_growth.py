r"""How time grows with batch, tasks, experts and scenarios.

    python benchmarks/cost_growth.py --plot docs/results/cost_growth.png

A training step at the paper's sizes, as in train_step.py, of which one grows
and the others stay; and a call of `predict_all_scenarios` for some entities,
each in every scenario, with a model of these sizes. Every configuration is
timed several times, in turns; told are medians, and the exponent of the power
law that fits them best: 1 is linear.
"""

import argparse
import dataclasses
import functools
import os
import pathlib
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import train_step
from tqdm import tqdm

from m2m_tf import __version__, files
from m2m_tf.plots import COLOURS

GROWING = {
    "batch": (64, 128, 256, 512),
    "tasks": (2, 4, 8, 16),
    "num_experts": (2, 4, 8, 16),
    "scenarios": (2, 4, 8, 16),
}
LABELS = {
    "batch": "samples of a batch",
    "tasks": "tasks",
    "num_experts": "experts",
    "scenarios": "scenarios of an entity",
}
# Entities of a call of `predict_all_scenarios`.
ENTITIES = 4


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--plot", type=pathlib.Path, help="PNG file")
    parser.add_argument("--output", type=pathlib.Path, help="Markdown file")
    options = parser.parse_args()
    seconds = {name: measure(name, options.turns) for name in GROWING}
    text = report(seconds, options)
    print(text)
    if options.output:
        files.write_text(options.output, text)
    if options.plot:
        draw(seconds, options.plot)


def measure(name, turns):
    """Median seconds of a step for each size of one quantity."""
    # Low rank: at full rank the generation of kernels, which neither tasks
    # nor experts share, hides what grows with them.
    steps = []
    for size in tqdm(GROWING[name], desc=name, file=sys.stderr):
        if name == "scenarios":
            step = make_call(size)
        else:
            value = size
            if name == "tasks":
                value = tuple(f"task_{index}" for index in range(size))
            step, _ = train_step.make_ours(meta_rank=16, **{name: value})
        step()
        steps.append(step)
    taken = []
    for _ in range(turns):
        row = []
        for step in steps:
            repeats, started = 0, time.perf_counter()
            while time.perf_counter() - started < 1:
                step()
                repeats += 1
            row.append((time.perf_counter() - started) / repeats)
        taken.append(row)
    return np.median(taken, axis=0)


def make_call(num_scenarios):
    """`predict_all_scenarios` of a model that knows so many scenarios."""
    import tensorflow as tf

    from m2m_tf import models, signatures
    from m2m_tf.data import schema
    from m2m_tf.features import Preprocessor

    data = prepare_clinics()
    fitted = data.preprocessor.statistics
    names = {schema.SCENARIO: [f"s{i:02d}" for i in range(num_scenarios)]}
    attributes = {
        name: (values * num_scenarios)[:num_scenarios]
        for name, values in fitted.scenario_attributes.items()
    }
    preprocessor = Preprocessor(
        data.spec,
        dataclasses.replace(
            fitted,
            vocabularies=fitted.vocabularies | names,
            scenario_attributes=attributes,
        ),
    )
    model = models.m2m(
        preprocessor.model_inputs,
        embedding_dim=train_step.EMBEDDING,
        meta_rank=16,
        **train_step.SIZES,
        **train_step.DEPTHS,
    )
    made = signatures.make_signatures(model, preprocessor)
    signature = made[signatures.PREDICT_ALL_SCENARIOS]
    function = tf.function(signature.function)
    inputs = {
        name: tf.zeros([ENTITIES, *tensor.shape[1:]], tensor.dtype)
        for name, tensor in signature.inputs.items()
    }
    return lambda: {k: v.numpy() for k, v in function(inputs).items()}


@functools.cache
def prepare_clinics():
    from m2m_tf.config import DatasetSpec
    from m2m_tf.data.dataset import ForecastData

    examples = pathlib.Path(__file__).parent.parent / "examples"
    sys.path.insert(0, str(examples))
    from make_clinics import write_clinic_tables

    with tempfile.TemporaryDirectory() as folder:
        spec = write_clinic_tables(pathlib.Path(folder))
        return ForecastData.prepare(DatasetSpec.load(spec), folder)


def exponent(name, seconds):
    return np.polyfit(np.log(GROWING[name]), np.log(seconds), 1)[0]


def report(seconds, options):
    lines = [
        "# What a step and a call cost as things grow",
        "",
        f"`python benchmarks/cost_growth.py --turns {options.turns}`, m2m_tf "
        f"{__version__}, {os.cpu_count()} cores; the paper's sizes with "
        f"`meta_rank: 16`: {train_step.SIZES}, {train_step.DEPTHS}, batches "
        f"of {train_step.BATCH}, {len(train_step.TASKS)} tasks, but for what "
        "grows. The last line is a call of `predict_all_scenarios` for "
        f"{ENTITIES} entities. Exponent of the power law that fits best; 1 is "
        "linear, less is less than linear.",
        "",
        "| | sizes | ms a step, or call | exponent |",
        "|---|---|---|---:|",
    ]
    for name, sizes in GROWING.items():
        lines.append(
            f"| {LABELS[name]} | {', '.join(map(str, sizes))} | "
            f"{', '.join(f'{1e3 * x:.0f}' for x in seconds[name])} | "
            f"{exponent(name, seconds[name]):.2f} |"
        )
    if options.plot:
        lines += ["", f"![Time of a step]({options.plot.name})"]
    return "\n".join(lines) + "\n"


def draw(seconds, path):
    figure, axes = plt.subplots(
        1, len(GROWING), figsize=(11, 3), layout="constrained"
    )
    for axis, (name, sizes) in zip(axes, GROWING.items()):
        milliseconds = 1e3 * seconds[name]
        axis.plot(sizes, milliseconds, "o-", color=COLOURS[0], label="measured")
        axis.plot(
            sizes,
            milliseconds[0] * np.array(sizes) / sizes[0],
            "--",
            color="#777777",
            label="in proportion",
        )
        axis.set_xlabel(LABELS[name])
        axis.set_ylim(bottom=0)
        axis.set_xlim(left=0)
        call = name == "scenarios"
        axis.set_ylabel("ms a call" if call else "ms a training step")
    axes[0].legend(frameon=False)
    figure.suptitle(
        "Cost of a training step, and of a call of predict_all_scenarios; "
        "paper's sizes, meta_rank 16"
    )
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()

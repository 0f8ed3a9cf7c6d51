r"""Where a training step of M2M spends its time, at the paper's sizes.

    pip install '.[profile]'
    python benchmarks/step_profile.py --plot docs/results/step_profile.png \
        --output docs/results/step_profile.md

Some steps are profiled by TensorFlow, as `training: {profile_steps: 5}`
profiles those of a run. XProf, which shows profiles in TensorBoard, sums the
time of each operation; operations are named after the layer that they are of.
"""

import argparse
import collections
import json
import pathlib
import re
import tempfile

import numpy as np
import train_step
from matplotlib.figure import Figure

from m2m_tf import __version__, files
from m2m_tf.plots import COLOURS

STEPS = 5
PHASES = FORWARD, BACKWARD, UPDATE = "forward", "backward", "update"
# Share of a step below which a part is left out.
SHOWN = 0.005
OPTIMIZER = "Adam"
PENALTIES = "penalties α‖W‖², sums of gradients"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--plot", type=pathlib.Path, help="PNG file")
    parser.add_argument("--output", type=pathlib.Path, help="Markdown file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        profile_steps(folder)
        operations = list(read_profile(folder))
    total = sum(seconds for _, _, seconds in operations)
    by_part = collections.defaultdict(collections.Counter)
    by_kind = collections.Counter()
    for name, kind, seconds in operations:
        part, phase = part_of(name)
        by_part[part][phase] += seconds / total
        by_kind[kind] += seconds / total
    parts = {
        part.replace("_", " "): shares
        for part, shares in sorted(
            by_part.items(), key=lambda item: -item[1].total()
        )
        if shares.total() >= SHOWN
    }
    text = report(total, parts, by_kind, options)
    print(text)
    if options.plot:
        draw(parts, options.plot)
    if options.output:
        files.write_text(options.output, text)


def profile_steps(folder):
    import tensorflow as tf

    step, _ = train_step.make_ours()
    for _ in range(3):  # The first ones trace and allocate.
        step()
    tf.profiler.experimental.start(folder)
    for number in range(STEPS):
        with tf.profiler.experimental.Trace("train", step_num=number, _r=1):
            step()
    tf.profiler.experimental.stop()


def read_profile(folder):
    """(operation, its kind, seconds of a step) of all operations."""
    from xprof.convert import raw_to_tool_data

    profiles = [str(path) for path in pathlib.Path(folder).rglob("*.xplane.pb")]
    told, _ = raw_to_tool_data.xspace_to_tool_data(
        profiles, "framework_op_stats", {}
    )
    table = json.loads(told)[0]
    columns = [column["id"] for column in table["cols"]]
    for row in table["rows"]:
        values = [cell.get("v") for cell in row["c"]]
        facts = dict(zip(columns, values, strict=True))
        if facts["type"] != "IDLE":
            seconds = facts["total_self_time"] / 1e6 / STEPS
            yield facts["operation"], facts["type"], seconds


def part_of(operation):
    """Part of the model that an operation belongs to, and the phase."""
    _, _, name = operation.partition("StatefulPartitionedCall/")
    phase = BACKWARD if name.startswith("gradient_tape/") else FORWARD
    parts = [
        re.sub(r"(_\d+)+$", "", part)
        for part in name.removeprefix("gradient_tape/").split("/")
    ]
    if parts[0] == "m2m" and len(parts) > 1:
        return parts[1], phase
    return (OPTIMIZER if parts[0] == "fused_adam" else PENALTIES), UPDATE


def report(total, parts, by_kind, options):
    lines = [
        "# Where a training step spends its time",
        "",
        f"`{train_step.command()}`, m2m_tf {__version__}, cores with "
        f"{', '.join(train_step.instructions())}, without XLA, float32, "
        f"{STEPS} steps of {train_step.BATCH} samples at the "
        "paper's sizes (those of [Training speed](speed.md)). Shares of the "
        f"time of all operations, {total:.1f} s a step summed over threads.",
        "",
    ]
    if options.plot:
        lines += [f"![Time by part]({options.plot.name})", ""]
    lines += [f"| part | {' | '.join(PHASES)} |", "|---|---:|---:|---:|"]
    for part, shares in parts.items():
        cells = (
            f"{shares[phase]:.1%}" if phase in shares else ""
            for phase in PHASES
        )
        lines.append(f"| {part} | {' | '.join(cells)} |")
    lines += ["", "| kind of operation | share |", "|---|---:|"]
    lines += [
        f"| {kind} | {share:.1%} |" for kind, share in by_kind.most_common(12)
    ]
    products = sum(
        share
        for kind, share in by_kind.items()
        if "MatMul" in kind or "Einsum" in kind
    )
    lines += [
        "",
        f"Matrix products are {products:.0%} of it. The rest moves "
        "memory: kernels and generators are far larger than the processor's "
        "caches, and Adam, penalties and sums each read or write all of the "
        "generators' weights.",
    ]
    return "\n".join(lines) + "\n"


def draw(parts, path):
    figure = Figure(figsize=(8, 0.4 * len(parts) + 1.2), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(parts))
    for phase, colour in zip(PHASES, COLOURS):
        widths = [100 * shares[phase] for shares in parts.values()]
        axes.barh(list(parts), widths, left=left, color=colour, label=phase)
        left += widths
    axes.invert_yaxis()
    axes.set_xlabel("% of the time of a training step")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


if __name__ == "__main__":
    main()

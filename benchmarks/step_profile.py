"""Where a training step of M2M spends its time, at the paper's sizes.

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

import train_step

STEPS = 5
FORWARD, BACKWARD, OTHER = "forward", "backward", "update"
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
    by_part, by_kind = collections.defaultdict(dict), collections.Counter()
    for name, kind, seconds in operations:
        part, phase = part_of(name)
        times = by_part[part]
        times[phase] = times.get(phase, 0.0) + seconds
        by_kind[kind] += seconds
    by_part = dict(
        sorted(by_part.items(), key=lambda item: -sum(item[1].values()))
    )
    text = report(by_part, by_kind, options)
    print(text)
    if options.plot:
        draw(by_part, options.plot)
    if options.output:
        from m2m_tf import files

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
    return (OPTIMIZER if parts[0] == "adam" else PENALTIES), OTHER


def report(by_part, by_kind, options):
    from m2m_tf import __version__

    total = sum(by_kind.values())
    lines = [
        "# Where a training step spends its time",
        "",
        f"`python benchmarks/step_profile.py`, m2m_tf {__version__}, without "
        f"XLA, float32, {STEPS} steps of {train_step.BATCH} samples at the "
        "paper's sizes (those of [Training speed](speed.md)). Shares of the "
        f"time of all operations, {total:.1f} s a step summed over threads.",
        "",
    ]
    if options.plot:
        lines += [f"![Time by part]({options.plot.name})", ""]
    lines += ["| part | forward | backward | update |", "|---|---:|---:|---:|"]
    for part, times in by_part.items():
        if sum(times.values()) < 0.005 * total:
            continue
        shares = (
            f"{times[phase] / total:.1%}" if phase in times else ""
            for phase in (FORWARD, BACKWARD, OTHER)
        )
        lines.append(
            f"| {part.replace('_', ' ')} | " + " | ".join(shares) + " |"
        )
    lines += ["", "| kind of operation | share |", "|---|---:|"]
    for kind, seconds in by_kind.most_common(12):
        lines.append(f"| {kind} | {seconds / total:.1%} |")
    products = sum(
        seconds
        for kind, seconds in by_kind.items()
        if "MatMul" in kind or "Einsum" in kind
    )
    lines += [
        "",
        f"Matrix products are {products / total:.0%} of it. The rest moves "
        "memory: kernels and generators are far larger than the processor's "
        "caches, and Adam, penalties and sums each read or write all of the "
        "generators' weights.",
    ]
    return "\n".join(lines) + "\n"


def draw(by_part, path):
    from matplotlib.figure import Figure

    total = sum(sum(times.values()) for times in by_part.values())
    shown = {
        part: times
        for part, times in by_part.items()
        if sum(times.values()) >= 0.005 * total
    }
    figure = Figure(figsize=(8, 0.4 * len(shown) + 1.2), layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(shown)
    names = [part.replace("_", " ") for part in shown]
    for phase in (FORWARD, BACKWARD, OTHER):
        widths = [100 * t.get(phase, 0.0) / total for t in shown.values()]
        axes.barh(names, widths, left=left, label=phase)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("% of the time of a training step")
    axes.legend()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()

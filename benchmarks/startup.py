r"""How long the library and the command take to start.

    python benchmarks/startup.py

Processes take turns: `import keras` (which imports TensorFlow) and `import
m2m_tf`, timed inside, and `m2m-tf --help` as a whole; told are medians, and
those of the ratios to `import keras` in the same turn.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from m2m_tf import __version__, files

TIMED = """
import time
started = time.perf_counter()
import {}
print(time.perf_counter() - started)
"""
KERAS = "import keras"
HELP = "m2m-tf --help"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--output", type=pathlib.Path, help="Markdown file")
    options = parser.parse_args()
    seconds = {KERAS: [], "import m2m_tf": [], HELP: []}
    # The first turn fills the disk's cache.
    for turn in range(options.turns + 1):
        for name, values in seconds.items():
            took = seconds_of(name)
            if turn:
                values.append(took)
    text = report(seconds, options)
    print(text)
    if options.output:
        files.write_text(options.output, text)


def seconds_of(name):
    if name == HELP:
        started = time.perf_counter()
        run("-m", "pipelines.cli", "--help")
        return time.perf_counter() - started
    return float(run("-c", TIMED.format(name.removeprefix("import "))))


def run(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], check=True, capture_output=True, text=True
    ).stdout


def report(seconds, options):
    base = np.array(seconds[KERAS])
    lines = [
        "# Start-up",
        "",
        f"`python benchmarks/startup.py --turns {options.turns}`, m2m_tf "
        f"{__version__}, {os.cpu_count()} cores. Processes that take "
        "turns; medians.",
        "",
        "| | s | ratio to `import keras` |",
        "|---|---:|---:|",
    ]
    for name, values in seconds.items():
        values = np.array(values)
        lines.append(
            f"| `{name}` | {np.median(values):.2f} | "
            f"{np.median(values / base):.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

r"""What M2M's faster settings cost in accuracy, on validation splits.

    python benchmarks/fast_settings.py --output docs/results/fast_settings.md

Trains the preset `small` with one network a training and one meta unit for
all tasks, and the same with full rank, a unit for each task (as the preset
has it), in bfloat16, or compiled by XLA, on Complete Journey and on simulated
advertisers. Each training leaves a small file beside the page; what a file
answers is not trained again, so the benchmark goes on where it was stopped.
"""

import argparse
import dataclasses
import os
import pathlib
import shutil

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from m2m_tf import (
    __version__,
    comparison,
    evaluation_run,
    files,
    study_page,
    training,
)
from m2m_tf.config import (
    MODEL_PRESETS,
    TRAINING_PRESETS,
    CompleteJourneySource,
    DatasetSpec,
    SimulatorSource,
)
from m2m_tf.data.dataset import ForecastData
from m2m_tf.evaluation import MEDIAN_SUFFIX
from pipelines.steps import write_source_tables

SOURCES = {
    "complete_journey_bookings": CompleteJourneySource("complete_journey"),
    "complete_journey_no_bookings": CompleteJourneySource(
        "complete_journey", bookings=False
    ),
    "simulator": SimulatorSource("simulator", advertisers=4000, days=140),
}
ONE_UNIT = dataclasses.replace(
    MODEL_PRESETS["small"], share_meta_across_tasks=True
)
# Changes of these and of the training's settings.
BASE = "rank 16, float32, no XLA"
OWN_UNITS = "a unit for each task"
VARIANTS = {
    BASE: ({}, {}),
    "full rank": ({"meta_rank": None}, {}),
    OWN_UNITS: ({"share_meta_across_tasks": False}, {}),
    "bfloat16": ({}, {"dtype_policy": "mixed_bfloat16"}),
    "XLA": ({}, {"jit_compile": True}),
}
# (what is faster, what it is held against)
PAIRS = (
    (BASE, "full rank"),
    (BASE, OWN_UNITS),
    ("bfloat16", BASE),
    ("XLA", BASE),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, default="runs/fast")
    for plural, known in (("datasets", SOURCES), ("variants", VARIANTS)):
        parser.add_argument(
            f"--{plural}",
            nargs="+",
            choices=list(known),
            default=list(known),
            metavar="NAME",
            help=f"to train, of {list(known)}; the page tells of all files",
        )
    options = parser.parse_args()
    results = options.output.with_suffix("")
    # Seeds outermost: stopped early, all variants have been trained.
    for seed in range(options.seeds):
        for dataset in options.datasets:
            for variant in options.variants:
                path = results / f"{dataset}-{_slug(variant)}-{seed}.json"
                if not path.exists():
                    print(f"{dataset}: {variant}, seed {seed}")
                    run(dataset, variant, seed, options.work, path)
    text = report(results)
    files.write_text(options.output, text)
    print(text)


def run(dataset, variant, seed, work, path):
    """Trains one network and writes what its validation forecasts score."""
    work = work / dataset
    spec = work / "tables" / "spec.yaml"
    if not spec.exists():
        write_source_tables(SOURCES[dataset], spec.parent)
    data = ForecastData.prepare(DatasetSpec.load(spec), work / "records")
    model, train = VARIANTS[variant]
    folder = work / path.stem
    training.train(
        data,
        dataclasses.replace(ONE_UNIT, **model),
        dataclasses.replace(
            TRAINING_PRESETS["small"], members=1, seed=seed, **train
        ),
        folder,
    )
    network = training.load_model(folder)
    told = evaluation_run.forecast_split(data, network, "validation")
    groups = comparison.entity_groups(told.entity)
    num_scenarios = len(data.preprocessor.scenario_names)
    shared = told.y_true, told.scenario, groups, num_scenarios
    sums = comparison.forecast_sums(
        told.y_true,
        told.forecasts[network.name],
        told.forecasts[network.name + MEDIAN_SUFFIX],
        *shared[1:],
    )
    result = {
        "version": __version__,
        "sums": comparison.to_lists(sums),
        "labels": comparison.to_lists(comparison.label_sums(*shared)),
    }
    files.write_compact_json(path, result)
    shutil.rmtree(folder)


def report(results):
    """The page of all results that there are, whoever asked for them."""
    tables, versions = [], set()
    for dataset in SOURCES:
        runs = {variant: {} for variant in VARIANTS}
        for variant, by_seed in runs.items():
            stem = f"{dataset}-{_slug(variant)}-"
            for path in sorted(results.glob(f"{stem}*.json")):
                by_seed[int(path.stem.removeprefix(stem))] = result = (
                    files.read_json(path)
                )
                versions.add(result["version"])
        if runs[BASE]:
            tables += [f"## {dataset}", "", *_tables(runs)]
    return "\n".join(
        [
            "# What M2M's faster settings cost in accuracy",
            "",
            "`python benchmarks/fast_settings.py --output "
            "docs/results/fast_settings.md`, with `--seeds`, `--datasets` and "
            "`--variants` as the tables say; trained by m2m_tf "
            f"{' and '.join(sorted(versions))}. The preset "
            "`small` with `members: 1` and one meta unit for all tasks "
            f"({BASE}) and one thing changed, on the validation splits, "
            "which also choose the best epoch. "
            "Unweighted means over task × scenario, mean ± standard deviation "
            "over the seeds; lower is better. Of the differences, over the "
            "seeds that both have, the 95 % intervals over entities and seeds "
            "that studies use, **bold** where one excludes 0. "
            "How fast they are, at the paper's sizes: [speed.md](speed.md).",
            "",
            *tables,
        ]
    )


def _tables(runs):
    labels = next(iter(runs[BASE].values()))["labels"]

    def sums(variant, seeds):
        return [runs[variant][seed]["sums"] for seed in sorted(seeds)]

    differences = []
    for faster, slower in PAIRS:
        seeds = runs[faster].keys() & runs[slower].keys()
        if seeds:
            texts = [
                study_page.difference_text(
                    comparison.difference(
                        sums(faster, seeds), sums(slower, seeds), labels, metric
                    )
                )
                for metric in study_page.TITLES
            ]
            name = f"{faster} minus {slower}"
            differences.append([name, str(len(seeds)), *texts])
    titles = ["seeds", *study_page.TITLES.values()]
    return [
        *study_page.markdown_table(
            ["", *titles],
            [
                [
                    name,
                    str(len(by_seed)),
                    *study_page.overall_texts(sums(name, by_seed), labels),
                ]
                for name, by_seed in runs.items()
                if by_seed
            ],
        ),
        *study_page.markdown_table(["difference", *titles], differences),
    ]


def _slug(variant):
    return variant.split(",")[0].replace(" ", "_")


if __name__ == "__main__":
    main()

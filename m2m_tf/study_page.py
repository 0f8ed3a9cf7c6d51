"""The page of a study: Markdown tables and plots of what its files hold."""

import pathlib

import numpy as np

from m2m_tf import comparison, files, plots
from m2m_tf.config import ABLATIONS, StudyConfig

# Text by hand that goes before the tables, if there is any.
NOTES_FILE = "notes.md"
TITLES = {
    "nmae": "NMAE",
    "deviance": "Poisson deviance",
    "relative_deviance": "deviance / mean label",
    "median_nmae": "NMAE of the median",
    "median_smape": "SMAPE of the median",
    "smape": "SMAPE",
}
# Older results do not tell which version of this library made them.
_UNTOLD = {"m2m_tf": "before 0.8.0"}
_HELD_AGAINST = ("nmae", "deviance", "median_nmae", "median_smape")


def write_page(
    config: StudyConfig,
    folder: pathlib.Path,
    collected: dict,
    command: str,
) -> pathlib.Path:
    """Writes `<folder>.md` and the plots beside the result files.

    Args:
        config: The study.
        folder: Folder of the study's result files.
        collected: What the files hold, by dataset; see `pipelines.compare`.
        command: The command that makes the page.

    Returns:
        Path of the page.
    """
    page = folder.with_name(folder.name + ".md")
    text = read_notes(folder, f"# Comparison: {config.name}\n")
    lines = [text, *_origin(config, collected, command)]
    datasets = collected["datasets"]
    held = {label: _held(dataset) for label, dataset in datasets.items()}
    lines += _failed_lines(folder, collected["failed"])
    lines += _overview_lines(held)
    for label, dataset in datasets.items():
        lines += _dataset_lines(folder, label, dataset, held[label])
    lines += _search_lines(collected["search"])
    lines += _sweep_lines(folder, collected)
    files.write_text(page, "\n".join(lines).rstrip() + "\n")
    return page


def read_notes(folder: pathlib.Path, default: str) -> str:
    """The text by hand of a study's folder, or `default`."""
    notes = folder / NOTES_FILE
    return notes.read_text(encoding="utf-8") if notes.exists() else default


def _origin(config, collected, command):
    groups = [x["models"] for x in collected["datasets"].values()]
    groups += collected["sweeps"].values()
    runs = [run for group in groups for rows in group.values() for run in rows]
    seeds = sorted({run["seed"] for run in runs})
    versions = {}
    for run in runs:
        for package, version in (_UNTOLD | run["versions"]).items():
            versions.setdefault(package, {})[version] = None
    told = "No run has ended yet."
    if runs:
        by = ", ".join(f"{k} {' and '.join(v)}" for k, v in versions.items())
        told = f"Seeds: {', '.join(map(str, seeds))}. Versions: {by}."
    lines = [
        "## Origin",
        "",
        f"Made by `{command}`, which runs only what `{config.name}/` holds no "
        f"file for. {told}",
        "",
        "Overall values are unweighted means over the cells task × scenario "
        "of the test split. ± is the standard deviation over seeds. Intervals "
        "are 95 % intervals of a difference: each of 2,000 draws takes "
        f"{comparison.NUM_GROUPS} groups of entities (by a hash of their ids) "
        "with replacement, the same for both sides, and moves the difference "
        "of the means over seeds by the t distribution of Welch's test. "
        "Of a single seed they tell of entities alone, and nothing is bold. "
        "One in twenty excludes 0 by chance where two models are alike, and "
        "there are many on this page. Settings were chosen on the validation "
        "split (see *Search*); test samples were scored once a seed.",
        "",
    ]
    return lines


def _failed_lines(folder, failed):
    """Runs without forecasts, which no table counts."""
    if not failed:
        return []
    return [
        "## Runs that failed",
        "",
        "They count in no table. To try one again, remove its file from "
        f"`{folder.name}/`.",
        "",
        *markdown_table(
            ["file", "what happened"],
            [
                [f"`{run['file']}`", " ".join(run["failed"].split())]
                for run in failed
            ],
        ),
    ]


def _present(facts):
    """Indices of the scenarios that have test samples."""
    counts = np.array(facts["labels"]["count"])[0]
    return [i for i in range(len(counts)) if counts[i].sum()]


def _held(dataset):
    """M2M minus each rival: metric → rival → group of scenarios → difference.

    Empty without M2M or without a rival.
    """
    facts, models = dataset["labels"], dataset["models"]
    rivals = [model for model in models if model != "m2m"]
    if "m2m" not in models or not rivals:
        return {}
    present = _present(facts)
    major = int(np.argmax(facts["samples"]["train"]))
    groups = {
        "all scenarios": present,
        f"major ({facts['scenarios'][major]})": [major],
        "minor": [i for i in present if i != major],
    }

    def sums(model):
        return [run["sums"] for run in models[model]]

    return {
        metric: {
            rival: {
                name: comparison.difference(
                    sums("m2m"), sums(rival), facts["labels"], metric, chosen
                )
                for name, chosen in groups.items()
                if chosen
            }
            for rival in rivals
        }
        for metric in _HELD_AGAINST
    }


def _overview_lines(held):
    """The differences over all scenarios, where there are several data."""
    if sum(map(bool, held.values())) < 2:
        return []
    rows = [
        [
            label,
            rival,
            *(
                difference_text(found[metric][rival]["all scenarios"])
                for metric in _HELD_AGAINST
            ),
        ]
        for label, found in held.items()
        if found
        for rival in found[_HELD_AGAINST[0]]
    ]
    return [
        "## M2M minus rival, in all data",
        "",
        "Over all scenarios. Below 0 M2M is better; **bold** where the "
        "interval excludes 0.",
        "",
        *markdown_table(
            ["data", "rival", *(TITLES[metric] for metric in _HELD_AGAINST)],
            rows,
        ),
    ]


def _dataset_lines(folder, label, dataset, held):
    facts = dataset["labels"]
    labels, models = facts["labels"], dataset["models"]
    names = facts["scenarios"]
    present = _present(facts)
    lines = [f"## Data: {label}", "", facts["description"], ""]
    if isinstance(facts["data"], dict) and "spec" in facts["data"]:
        lines += [
            "Tables of `{spec}` as they were on {end}.".format(**facts["data"]),
            "",
        ]
    lines += [
        "Fingerprint: "
        + ", ".join(f"{k} `{v}`" for k, v in facts["fingerprint"].items())
        + f". {facts['entities']:,} entities in the test split.",
        "",
    ]
    lines += markdown_table(
        ["samples", *(names[i] for i in present)],
        [
            [split, *(f"{counts[i]:,}" for i in present)]
            for split, counts in facts["samples"].items()
        ],
    )
    lines += ["### Overall", ""]
    rows = []
    for model, runs in models.items():
        sums = [run["sums"] for run in runs]
        rows.append([model, str(len(runs)), *overall_texts(sums, labels)])
    for name, sums in facts["forecasts"].items():
        rows.append([name, "", *overall_texts([sums], labels)])
    lines += markdown_table(["forecast", "seeds", *TITLES.values()], rows)
    truth = facts["forecasts"].get(comparison.TRUE_RATES)
    if truth and "m2m" in models:
        lines += [_distance_line(models, truth, labels)]
    covered = [
        [
            model,
            spread_text(
                [run["interval"]["coverage"] for run in runs], "{:.1%}"
            ),
            spread_text([run["interval"]["closed"] for run in runs], "{:.1%}"),
        ]
        for model, runs in models.items()
        if "interval" in runs[0]
    ]
    if covered:
        lines += [
            "### 80 % intervals",
            "",
            "*Covered* counts a label on an edge of the interval by the part "
            "of its probability within the levels 0.1 and 0.9 (a right "
            "distribution scores 80 %); *closed* counts it wholly, which for "
            "counts and many zeros must be more.",
            "",
            *markdown_table(["model", "covered", "closed"], covered),
        ]
    if not held:
        return lines
    for metric, by_rival in held.items():
        groups = next(iter(by_rival.values()))
        lines += [
            f"### M2M minus rival: {TITLES[metric]}",
            "",
            "Below 0 M2M is better; **bold** where the interval excludes 0.",
            "",
        ]
        lines += markdown_table(
            ["rival", *groups],
            [
                [rival, *map(difference_text, found.values())]
                for rival, found in by_rival.items()
            ],
        )
    path = folder / f"{label}_differences.png"
    plots.plot_differences(
        {
            TITLES[metric]: {
                rival: found["all scenarios"]
                for rival, found in by_rival.items()
            }
            for metric, by_rival in held.items()
        },
        path,
    )
    lines += [
        f"![M2M minus each rival]({folder.name}/{path.name})",
        "",
        *_cell_lines(facts, models, present),
    ]
    return lines


def _distance_line(models, truth, labels):
    """How far M2M and its best rival are from the best possible forecasts."""
    parts = []
    for metric in ("nmae", "deviance"):
        best = overall_values([truth], labels, metric)[0]
        means = {
            model: np.mean(
                overall_values([run["sums"] for run in runs], labels, metric)
            )
            for model, runs in models.items()
            if model not in ABLATIONS
        }
        ours = means.pop("m2m")
        text = f"{TITLES[metric]}: M2M {ours / best - 1:+.1%}"
        if means:
            rival = min(means, key=means.__getitem__)
            text += f", its best rival ({rival}) {means[rival] / best - 1:+.1%}"
        parts.append(text)
    return (
        "Above the best possible forecasts, which know the hidden state: "
        + "; ".join(parts)
        + ".\n"
    )


def _cell_lines(facts, models, present):
    """NMAE of every model in every cell, as the paper's table 4."""
    labels, networks = facts["labels"], list(models)
    values = {
        model: np.mean(
            [comparison.cell_values(r["sums"], labels, "nmae") for r in runs],
            axis=0,
        )
        for model, runs in models.items()
    }
    ours = [run["sums"] for run in models["m2m"]]
    rows = []
    for t, task in enumerate(facts["tasks"]):
        for s in present:
            row = [task, facts["scenarios"][s]]
            for model in networks:
                text = f"{values[model][t, s]:.3f}"
                if model != "m2m" and not np.isnan(values[model][t, s]):
                    found = comparison.difference(
                        ours,
                        [run["sums"] for run in models[model]],
                        labels,
                        "nmae",
                        cell=(t, s),
                    )
                    if found.is_clear:
                        text += " +" if found.value < 0 else " −"
                row.append(text)
            rows.append(row)
    return [
        "### NMAE by task and scenario",
        "",
        "`+`: M2M is better there by an interval that excludes 0; `−`: worse.",
        "",
        *markdown_table(["task", "scenario", *networks], rows),
    ]


def _search_lines(search):
    rows = []
    for model, trials in search.items():
        if len(trials) < 2:
            continue
        scores = [
            trial["result"] and trial["result"]["validation_score"]
            for trial in trials
        ]
        done = [score for score in scores if score is not None]
        for trial, score in zip(trials, scores, strict=True):
            text = "-" if score is None else f"{score:.4f}"
            if done and score == min(done):
                text = f"**{text}**"
            rows.append([model, _changes_text(trial["changes"]), text])
    if not rows:
        return []
    return [
        "## Search",
        "",
        "Each candidate once, with the first seed, on the first dataset: "
        "overall Poisson deviance / mean label of the validation split.",
        "",
        *markdown_table(["model", "changes", "validation score"], rows),
    ]


def _sweep_lines(folder, collected):
    if not any(any(rows.values()) for rows in collected["sweeps"].values()):
        return []
    facts = next(iter(collected["datasets"].values()))["labels"]
    lines = ["## Sweeps of M2M", ""]
    for setting, by_value in collected["sweeps"].items():
        found = {value: runs for value, runs in by_value.items() if runs}
        if not found:
            continue
        values = {
            value: overall_values(
                [run["sums"] for run in runs],
                runs[0].get("labels", facts["labels"]),
                "nmae",
            )
            for value, runs in found.items()
        }
        path = folder / f"sweep_{setting}.png"
        plots.plot_sweep(values, setting, path)
        lines += [
            f"### {setting}",
            "",
            *markdown_table(
                [setting, "seeds", "NMAE"],
                [
                    [str(value), str(len(x)), spread_text(x)]
                    for value, x in values.items()
                ],
            ),
            f"![{setting}]({folder.name}/{path.name})",
            "",
        ]
    return lines


def overall_texts(runs, labels):
    """Mean and spread over the runs of each metric of `TITLES`."""
    return [
        spread_text(overall_values(runs, labels, metric)) for metric in TITLES
    ]


def overall_values(runs, labels, metric):
    """The metric's overall value of each run."""
    return [
        float(comparison.overall(comparison.cell_values(sums, labels, metric)))
        for sums in runs
    ]


def spread_text(values, form="{:.4f}"):
    """Mean ± standard deviation of some values."""
    text = form.format(np.mean(values))
    if len(values) > 1:
        text += " ± " + form.format(np.std(values, ddof=1))
    return text


def difference_text(difference):
    """Difference and interval, bold where it is clear."""
    value, low, high, is_clear = difference
    text = f"{value:+.4f} [{low:+.4f}, {high:+.4f}]"
    return f"**{text}**" if is_clear else text


def _changes_text(changes):
    parts = []
    for key, value in changes.items():
        if isinstance(value, dict):
            parts += [f"{k} {v}" for k, v in value.items()]
        else:
            parts.append(f"{key} {value}")
    return ", ".join(parts) or "none"


def markdown_table(head, rows):
    """Lines of a table, and an empty one."""
    lines = [
        "| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |"
        for row in [head, *rows]
    ]
    lines.insert(1, "|" + "---|" * len(head))
    return [*lines, ""]

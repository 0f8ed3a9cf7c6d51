import re

import numpy as np
import pytest

from m2m_tf import comparison
from m2m_tf.config import StudyConfig
from m2m_tf.study_page import write_page

SCENARIOS = ["(unknown)", "big", "small"]
TASKS = ["clicks", "sales"]
# Factors by which each forecast errs from the truth, by seed.
FACTORS = {
    "m2m": (1.05, 1.055, 1.06),
    "mmoe": (1.3, 1.32, 1.34),
    "m2m_without_meta_tower": (1.2,),
}


def sums_of(world, factor):
    y_true, rate, scenario, groups = world
    forecast = rate * factor
    return comparison.to_lists(
        comparison.forecast_sums(
            y_true, forecast, forecast, scenario, groups, len(SCENARIOS)
        )
    )


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    scenario = np.where(rng.random(4000) < 0.8, 1, 2)
    rate = rng.gamma(2.0, 20.0, (4000, len(TASKS)))
    groups = rng.integers(comparison.NUM_GROUPS, size=4000)
    return rng.poisson(rate), rate, scenario, groups


@pytest.fixture(scope="module")
def page(world, tmp_path_factory):
    y_true, _, scenario, groups = world
    labels = comparison.label_sums(y_true, scenario, groups, len(SCENARIOS))
    counts = np.bincount(scenario, minlength=3).tolist()
    models = {
        model: [
            {
                "sums": sums_of(world, factor),
                "versions": {"numpy": "2"},
                "seed": seed,
            }
            for seed, factor in enumerate(factors)
        ]
        for model, factors in FACTORS.items()
    }
    facts = {
        "data": {"spec": "spec.yaml", "end": "2025-06-14"},
        "description": "Made up.",
        "fingerprint": {"panel": "abc"},
        "entities": 40,
        "tasks": TASKS,
        "scenarios": SCENARIOS,
        "samples": dict.fromkeys(("train", "validation", "test"), counts),
        "labels": comparison.to_lists(labels),
        "forecasts": {
            "history_mean": sums_of(world, 2.0),
            "true_rates": sums_of(world, 1.0),
        },
    }
    folder = tmp_path_factory.mktemp("results") / "study"
    config = StudyConfig(
        name="study", data={"made": "spec.yaml"}, seeds=(0, 1, 2, 3, 4)
    )
    collected = {
        "search": {},
        "datasets": {
            "made": {"labels": facts, "models": models},
            "again": {
                "labels": facts | {"data": "spec.yaml"},
                "models": models,
            },
        },
        "sweeps": {"knowledge_dim": {8: [models["m2m"][0] | {"seed": 3}]}},
        "failed": [
            {"file": "made/m2m-1-seed3.json", "failed": "No epoch\nwas finite."}
        ],
    }
    path = write_page(config, folder, collected, command="m2m-tf compare x")
    assert (folder / "made_differences.png").stat().st_size > 1000
    return path.read_text()


def test_tells_how_it_was_made(page):
    assert "`m2m-tf compare x`" in page
    assert "panel `abc`" in page
    assert page.count("Tables of `spec.yaml` as they were on 2025-06-14.") == 1
    assert "Seeds: 0, 1, 2, 3. Versions: m2m_tf before 0.8.0, numpy 2." in page


def test_a_study_that_has_just_begun_has_a_page(tmp_path):
    config = StudyConfig(name="study", data={"made": "spec.yaml"})
    nothing = {"search": {}, "datasets": {}, "sweeps": {}, "failed": []}
    page = write_page(config, tmp_path / "study", nothing, command="run it")
    assert "no file for. No run has ended yet.\n" in page.read_text()


def test_runs_that_failed_are_told(page):
    assert "| `made/m2m-1-seed3.json` | No epoch was finite. |" in page


def test_overall_scores_are_means_over_cells_with_their_spread(page, world):
    y_true, rate, scenario, _ = world
    values = [
        np.mean(
            [
                np.abs(
                    rate[scenario == s, t] * factor - y_true[scenario == s, t]
                ).sum()
                / y_true[scenario == s, t].sum()
                for t in range(2)
                for s in (1, 2)
            ]
        )
        for factor in FACTORS["m2m"]
    ]
    spread = np.std(values, ddof=1)
    assert f"| m2m | 3 | {np.mean(values):.4f} ± {spread:.4f} |" in page


def test_tells_the_distance_to_the_best_possible_forecasts(page):
    line = next(x for x in page.splitlines() if x.startswith("Above the best"))
    found = re.findall(r"(M2M|\(\w+\)) \+([\d.]+)%", line)
    # An ablation of M2M is no rival.
    assert [name for name, _ in found] == ["M2M", "(mmoe)"] * 2
    ours, theirs = (float(value) for _, value in found[:2])
    assert 0 < ours < theirs


def test_differences_in_all_data_stand_in_one_table(page):
    (table,) = re.findall(
        r"## M2M minus rival, in all data\n(.+?)\n## ", page, re.S
    )
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("| made") or line.startswith("| again")
    ]
    assert [row[:2] for row in rows] == [
        [label, rival]
        for label in ("made", "again")
        for rival in ("mmoe", "m2m_without_meta_tower")
    ]
    nmae = page.split("### M2M minus rival: NMAE\n")[1]
    row = next(x for x in nmae.splitlines() if x.startswith("| mmoe"))
    assert rows[0][2] == row.split("|")[2].strip()


def test_differences_stand_apart_for_major_and_minor_scenarios(page):
    for title in (
        "NMAE",
        "Poisson deviance",
        "NMAE of the median",
        "SMAPE of the median",
    ):
        table = page.split(f"### M2M minus rival: {title}\n")[1]
        assert "| rival | all scenarios | major (big) | minor |" in table
        row = next(x for x in table.splitlines() if x.startswith("| mmoe"))
        # M2M is better by far in every column.
        assert row.count("**-") == 3
        # Of one seed nobody knows what another would bring.
        row = next(x for x in table.splitlines() if "without" in x)
        assert row.count("| -") == 3 and "**" not in row

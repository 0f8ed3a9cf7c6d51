import dataclasses
import pathlib

import numpy as np
import pytest

from benchmarks import mechanisms
from m2m_tf import files
from m2m_tf.config import SimulatorSource


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Results of a small world, and its page."""
    folder = tmp_path_factory.mktemp("worth")
    worlds = {
        "12 scenarios": SimulatorSource(
            "simulator",
            advertisers=1000,
            days=140,
            scenarios=12,
            mechanism_strength=1.0,
        )
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mechanisms, "WORLDS", worlds)
        results = folder / "worth"
        mechanisms.run(
            "12 scenarios", folder / "work", results / "12_scenarios.json"
        )
        page = mechanisms.report(results)
    return files.read_json(results / "12_scenarios.json"), page


def test_both_forecast_the_same_labels(made):
    result, _ = made
    assert set(result["sums"]) == {"LightGBM", "told the mechanisms"}
    assert result["scenarios"][0] == "(unknown)"
    plain, told = (
        np.asarray(sums["mean_deviance"]) for sums in result["sums"].values()
    )
    labels = np.asarray(result["labels"]["label"])
    assert plain.shape == told.shape == labels.shape
    assert not np.allclose(plain, told)
    # In the major scenario, of which there are rows enough.
    major = result["scenarios"].index("sponsored_search")
    assert told[:, major].sum() < plain[:, major].sum()


def test_page_has_the_differences(made):
    _, page = made
    (row,) = [x for x in page.splitlines() if x.startswith("| 12 scenarios")]
    assert row.count("[") == 4 and row.count("%") == 4


def test_worlds_differ_in_scenarios_and_strength_alone():
    worlds = list(mechanisms.WORLDS.values())
    assert len(worlds) == 4
    first = dataclasses.replace(worlds[0], scenarios=24, mechanism_strength=1.0)
    assert first == worlds[-1]


def test_the_repository_holds_the_page_of_its_results():
    results = pathlib.Path("docs/results/mechanisms")
    page = results.with_suffix(".md")
    assert mechanisms.report(results) == page.read_text("utf-8")

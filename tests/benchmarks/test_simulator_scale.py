"""The pages are remade by their command from the results in the repository."""

import pathlib
import shutil
import subprocess
import sys

import pytest


@pytest.mark.parametrize("name", ["simulator_scale", "simulator_scale_same"])
def test_page_is_that_of_the_results(tmp_path, name):
    results = pathlib.Path("docs/results", name)
    shutil.copytree(results, tmp_path / name)
    subprocess.run(
        [
            sys.executable,
            "benchmarks/simulator_scale.py",
            "--page-only",
            *("--results", str(tmp_path / name)),
        ],
        check=True,
        timeout=300,
    )
    page = (tmp_path / name).with_suffix(".md").read_text()
    assert page == results.with_suffix(".md").read_text()

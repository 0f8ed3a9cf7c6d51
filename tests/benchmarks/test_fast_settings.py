"""The page is remade by its command from the results in the repository."""

import pathlib
import shutil
import subprocess
import sys

RESULTS = pathlib.Path("docs/results/fast_settings")


def test_page_is_that_of_the_results(tmp_path):
    shutil.copytree(RESULTS, tmp_path / RESULTS.name)
    page = (tmp_path / RESULTS.name).with_suffix(".md")
    subprocess.run(
        [
            sys.executable,
            "benchmarks/fast_settings.py",
            *("--seeds", "0"),
            *("--output", str(page)),
        ],
        check=True,
        timeout=300,
    )

    def tables(path):
        return path.read_text().split("\n## ")[1:]

    assert tables(page) == tables(RESULTS.with_suffix(".md"))
    assert len(tables(page)) == 3

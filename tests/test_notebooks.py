"""Each notebook is executed as its reader would, in an empty folder."""

import pathlib
import re
import subprocess

import jupytext
import nbclient
import pytest

ROOT = pathlib.Path(__file__).parent.parent
SOURCES = sorted((ROOT / "notebooks").glob("*.py"))
# Only a cell that hangs should reach it: the slowest, six trainings in notebook
# 3, took over ten minutes on two cores that four other programs shared.
CELL_SECONDS = 1800


def test_readme_lists_all_and_no_others():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"\(notebooks/(\w+\.py)\)", text)
    assert listed == [path.name for path in SOURCES]


def test_sources_alone_are_under_version_control():
    # Percent scripts cannot hold output.
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT / "notebooks",
        check=True,
        capture_output=True,
        text=True,
    )
    assert sorted(listed.stdout.split()) == [path.name for path in SOURCES]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_begins_with_what_one_learns_how_long_it_takes_and_what_it_needs(
    source,
):
    first = jupytext.read(source).cells[0]
    number = int(source.stem[:2])
    assert first.cell_type == "markdown"
    assert first.source.startswith(f"# {number}. ")
    for word in ("**You learn**", "**Time:**", "**Needs:**"):
        assert word in first.source


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_runs(source, tmp_path):
    notebook = jupytext.read(source)
    nbclient.NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    assert [path.name for path in tmp_path.iterdir()] == ["work"]
    # What a reader would take for a defect. TensorFlow's greeting has a
    # warning, too: that is no library's or notebook's.
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            text = output.get("text", "")
            assert not re.search("Warning|WARNING:(absl|tensorflow)", text)

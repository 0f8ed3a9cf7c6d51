"""Every example in a docstring runs and gives what it says.

Beside the names of its module an example has `keras`, `data`, the clinics
prepared, and `model`, trained on them. It runs in a folder that holds their
tables and `spec.yaml`, the training in `runs/clinics` and what was exported
from it in `saved_models/clinics`.
"""

import doctest
import importlib
import inspect
import pathlib
import pkgutil
import re
import shutil

import keras
import pytest

import m2m_tf
from m2m_tf import training

# Need a server, and several versions: tests/test_docs.py runs the same on the
# page about serving.
NOT_RUN = {
    "m2m_tf.serving.client.Client",
    "m2m_tf.serving.pushing.rollback",
}
_PAGES = pathlib.Path(__file__).parents[1] / "docs" / "api"
# Modules of whose names each class and function has an example: those that
# the site's pages show, and others that are called from notebooks.
SHOWN = (
    "m2m_tf",
    "m2m_tf.baselines.lightgbm",
    "m2m_tf.baselines.naive",
    "m2m_tf.baselines.tabular",
    "m2m_tf.config",
    "m2m_tf.plots",
    "m2m_tf.versions",
    *sorted(
        name
        for page in _PAGES.glob("*.md")
        for name in re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE)
    ),
)
_COMPARED = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    for info in pkgutil.walk_packages(m2m_tf.__path__, "m2m_tf."):
        module = importlib.import_module(info.name)
        for found in finder.find(module, info.name):
            if found.examples and found.name not in NOT_RUN:
                yield found


EXAMPLES = {found.name: found for found in examples()}


@pytest.fixture(scope="module")
def model(trained):
    return training.load_model(trained[0])


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs_as_printed(
    name, clinic_data, model, trained, exported, tmp_path, monkeypatch
):
    example = EXAMPLES[name]
    shutil.copytree(clinic_data.spec.panel.parent, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "clinics").symlink_to(trained[0])
    (tmp_path / "saved_models").mkdir()
    (tmp_path / "saved_models" / "clinics").symlink_to(exported)
    example.globs |= {"keras": keras, "data": clinic_data, "model": model}
    report = []
    doctest.DocTestRunner(optionflags=_COMPARED).run(example, out=report.append)
    assert not report, "".join(report)


@pytest.mark.parametrize("module", SHOWN)
def test_public_names_have_an_example(module):
    without = [
        name
        for name, value in vars(importlib.import_module(module)).items()
        if (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__.startswith(module)
        and not name.startswith("_")
        and not (inspect.isclass(value) and issubclass(value, Exception))
        and ">>>" not in (value.__doc__ or "")
    ]
    assert not without

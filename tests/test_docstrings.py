"""Every example in a docstring runs and gives what it says.

Beside the names of its module an example has `keras` and `data`, the clinics
prepared; it runs in a folder that holds their tables and `spec.yaml`.
"""

import doctest
import importlib
import pkgutil

import keras
import pytest
from tables import write_clinic_tables

import m2m_tf

# Needs a server: tests/test_docs.py runs the same on the page about serving.
NOT_RUN = {"m2m_tf.serving.client.Client"}
_COMPARED = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    for info in pkgutil.walk_packages(m2m_tf.__path__, "m2m_tf."):
        module = importlib.import_module(info.name)
        for found in finder.find(module, info.name):
            if found.examples and found.name not in NOT_RUN:
                yield found


EXAMPLES = {found.name: found for found in examples()}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs_as_printed(name, clinic_data, tmp_path, monkeypatch):
    example = EXAMPLES[name]
    write_clinic_tables(tmp_path)
    monkeypatch.chdir(tmp_path)
    example.globs |= {"keras": keras, "data": clinic_data}
    report = []
    doctest.DocTestRunner(optionflags=_COMPARED).run(example, out=report.append)
    assert not report, "".join(report)


def test_examples_are_found():
    assert {"m2m_tf.models.m2m.m2m", "m2m_tf.layers.meta_dense.MetaDense"} <= (
        EXAMPLES.keys()
    )

import inspect
import subprocess
import sys

import keras
import pytest

from m2m_tf import layers, losses, metrics

CLASSES = [
    value
    for module in (layers, losses, metrics)
    for _, value in inspect.getmembers(module, inspect.isclass)
    if value.__module__.startswith("m2m_tf")
    and issubclass(
        value, (keras.Layer, keras.losses.Loss, keras.metrics.Metric)
    )
]
ARGUMENTS = {
    "MetaDense": {"units": 3},
    "ColumnEmbedding": {"vocabulary_sizes": [3, 4]},
    "SequenceEncoder": {"vocabulary_sizes": [3, 4]},
    "GatedExperts": {"num_tasks": 2},
    "TaskDense": {"units": 3},
    "TaskRelationAttention": {"num_tasks": 2},
    "TaskViews": {"num_tasks": 2},
    "CellMetrics": {"task_names": ["a", "b"], "num_scenarios": 3},
}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_class_is_registered_and_round_trips(cls):
    if cls.__name__ == "GroupedRatio":
        assert not keras.saving.get_registered_name(cls).startswith("m2m_tf")
        return  # The metrics' base: it has no formula of its own.
    name = keras.saving.get_registered_name(cls)
    assert name == f"m2m_tf>{cls.__name__}"
    one = cls(**ARGUMENTS.get(cls.__name__, {}))
    two = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(one)
    )
    assert type(two) is cls and two.get_config() == one.get_config()


def test_import_leaves_out_what_takes_long():
    # Each of these adds half a second to an import. Keras has some itself.
    heavy = {"scipy.stats", "matplotlib.pyplot", "lightgbm", "pandas"}
    code = (
        "import sys, keras; before = set(sys.modules); import m2m_tf; "
        f"print({heavy} & (set(sys.modules) - before))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert told.stdout.strip() == "set()"

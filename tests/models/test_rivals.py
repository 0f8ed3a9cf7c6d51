import dataclasses
import inspect
import re

import numpy as np
import pytest
import tensorflow as tf
from tables import SMALL_MODEL

from m2m_tf.config import ModelSettings
from m2m_tf.models import BUILDERS, build_model

from .model_checks import (
    build,
    check_gradient_reaches_every_weight,
    check_saves_and_loads_exactly,
    check_scenario_changes_the_forecast,
    check_untrained_rates_are_near,
)

RIVALS = sorted(set(BUILDERS) - {"m2m"})


@pytest.mark.parametrize("name", RIVALS)
def test_gradient_reaches_every_weight(clinic_data, batch, name):
    model = build(clinic_data, name=name)
    check_gradient_reaches_every_weight(model, batch)


@pytest.mark.parametrize("name", RIVALS)
def test_saves_and_loads_exactly(clinic_data, batch, name, tmp_path):
    model = build(clinic_data, name=name)
    assert list(model(batch[0])) == ["visits", "fees", "open"]
    check_saves_and_loads_exactly(model, batch, tmp_path / "model.keras")


@pytest.mark.parametrize("name", RIVALS)
def test_scenario_changes_the_forecast(clinic_data, batch, name):
    check_scenario_changes_the_forecast(build(clinic_data, name=name), batch)


@pytest.mark.parametrize("name", BUILDERS)
def test_defaults_are_those_of_the_settings(clinic_data, name):
    spec = clinic_data.preprocessor.model_inputs
    # The paper's sizes are 80 million weights.
    sizes = {"view_dim": 8} | ({"knowledge_dim": 4} if name == "m2m" else {})
    settings = ModelSettings(name=name)
    for size in sizes:
        default = inspect.signature(BUILDERS[name]).parameters[size].default
        assert default == getattr(settings, size)
    settings = dataclasses.replace(settings, **sizes)
    built = BUILDERS[name](spec, **sizes), build_model(spec, settings)
    ours, theirs = (
        # Keras numbers the operations between layers over all models.
        [
            layer.get_config()
            for layer in model.layers
            if "get_item" not in layer.name
        ]
        for model in built
    )
    assert ours == theirs


def backbone_weights(model):
    """Shapes of all weights but those of the parts in which models differ."""
    own = re.compile(
        "bottom|expert_views|gates|task_networks|cross_stitch|tower|"
        "meta|task_views|scenario_knowledge|field_|task_relations"
    )
    return {
        weight.path: tuple(weight.shape)
        for weight in model.weights
        if not own.search(weight.path)
    }


@pytest.mark.parametrize("name", sorted(set(RIVALS) - {"single_task"}))
def test_inputs_backbone_and_heads_are_those_of_m2m(clinic_data, name):
    ours = build(clinic_data, context_in_backbone=True)
    theirs = build(clinic_data, name=name)
    assert backbone_weights(ours) == backbone_weights(theirs)


def test_tasks_of_single_task_share_nothing(clinic_data, batch):
    model = build(clinic_data, name="single_task")
    inputs, labels = batch
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(inputs)["visits"])
    gradients = tape.gradient(loss, model.trainable_variables)
    reached = {"visits": 0, "fees": 0, "open": 0}
    for weight, gradient in zip(
        model.trainable_variables, gradients, strict=True
    ):
        if gradient is None:
            continue
        moved = tf.convert_to_tensor(gradient)
        task = weight.path.removeprefix("task_").split("_")[0]
        if task in reached:
            reached[task] += np.any(moved)
        else:  # All tasks' weights, one after another.
            for task, part in zip(reached, moved, strict=True):
                reached[task] += np.any(part)
    assert reached["visits"] > 10
    assert reached["fees"] == reached["open"] == 0


def test_tasks_may_be_called_as_inputs_are(clinic_data):
    sizes = dataclasses.replace(
        clinic_data.preprocessor.model_inputs,
        task_names=("profile", "dense", "scenario"),
    )
    for name in BUILDERS:
        settings = dataclasses.replace(SMALL_MODEL, name=name)
        assert list(build_model(sizes, settings).output) == [*sizes.task_names]


@pytest.mark.parametrize("name", RIVALS)
def test_untrained_rates_are_near_the_mean_labels(clinic_data, batch, name):
    check_untrained_rates_are_near(
        build(clinic_data, name=name, history_offset=False),
        batch,
        clinic_data.preprocessor.statistics.label_means,
    )

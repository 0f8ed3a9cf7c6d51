"""Checks that every builder's model has to pass."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf
from tables import SMALL_MODEL

from m2m_tf.losses import joint_hurdle, joint_poisson
from m2m_tf.models import build_model


def build(data, **changes):
    """A small model without dropout, the same at each call."""
    keras.utils.set_random_seed(3)
    settings = dataclasses.replace(SMALL_MODEL, dropout=0.0, **changes)
    return build_model(
        data.preprocessor.model_inputs,
        settings,
        data.preprocessor.statistics.label_means,
    )


def check_gradient_reaches_every_weight(model, batch):
    inputs, labels = batch
    has_shape = model.output["visits"].shape[-1] > 1
    weights = dict.fromkeys(labels, 1.0)
    losses = joint_hurdle(weights) if has_shape else joint_poisson(labels)
    with tf.GradientTape() as tape:
        outputs = model(inputs, training=True)
        loss = sum(losses[t](labels[t], outputs[t]) for t in labels)
    gradients = tape.gradient(loss, model.trainable_variables)
    for weight, gradient in zip(
        model.trainable_variables, gradients, strict=True
    ):
        assert gradient is not None, weight.path
        gradient = tf.convert_to_tensor(gradient)
        assert float(tf.reduce_max(tf.abs(gradient))) > 0, weight.path


def check_saves_and_loads_exactly(model, batch, path):
    model.save(path)
    loaded = keras.saving.load_model(path)
    for task, values in model(batch[0]).items():
        np.testing.assert_array_equal(values, loaded(batch[0])[task])


def check_scenario_changes_the_forecast(model, batch):
    inputs = dict(batch[0])
    inputs["scenario_features"] = tf.zeros_like(inputs["scenario_features"])
    before, after = model(batch[0]), model(inputs)
    assert not np.allclose(before["visits"], after["visits"])


def check_untrained_rates_are_near(model, batch, label_means):
    outputs = model(batch[0])
    for mean, log_rate in zip(label_means, outputs.values(), strict=True):
        np.testing.assert_allclose(np.exp(log_rate[:, 0]), mean, rtol=0.4)

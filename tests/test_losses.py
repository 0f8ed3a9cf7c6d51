import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings, strategies as st

from m2m_tf.losses import (
    HurdleLoss,
    PoissonLogRate,
    hurdle_negative_log_likelihood,
    joint_hurdle,
    poisson_log_rate,
)


def elements(y_true, log_rate):
    return poisson_log_rate(
        tf.constant(y_true, "float32"), tf.constant(log_rate, "float32")
    ).numpy()


def test_hand_computed():
    np.testing.assert_allclose(
        elements([0.0, 2.0, 0.5], [0.0, math.log(3.0), -1.0]),
        [1.0, 3.0 - 2.0 * 1.0986123, 0.36787944 + 0.5],
        rtol=1e-6,
    )


def test_equals_keras_poisson_of_the_rate():
    rng = np.random.default_rng(0)
    y_true = rng.poisson(3.0, 20).astype("float32")
    log_rate = rng.normal(size=20).astype("float32")
    expected = keras.losses.Poisson()(y_true, np.exp(log_rate))
    loss = PoissonLogRate()(y_true, log_rate)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(rate=st.floats(1e-6, 1e6), factor=st.floats(0.01, 0.9))
def test_is_least_at_the_logarithm_of_the_label(rate, factor):
    log_rates = np.log([rate * factor, rate, rate / factor])
    below, at, above = elements([rate] * 3, log_rates)
    assert at <= below
    assert at <= above


@pytest.mark.parametrize("log_rate", [-1e4, -50.0, 0.0, 50.0])
@pytest.mark.parametrize("label", [0.0, 7.5])
def test_gradient_is_rate_minus_label_without_a_guard(log_rate, label):
    log_rate = tf.constant([log_rate])
    with tf.GradientTape() as tape:
        tape.watch(log_rate)
        loss = PoissonLogRate()(tf.constant([label]), log_rate)
    assert np.isfinite(float(loss))
    expected = math.exp(float(log_rate[0])) - label
    assert float(tape.gradient(loss, log_rate)[0]) == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float32"])
def test_float32_whatever_the_policy(policy):
    keras.config.set_dtype_policy(policy)
    try:
        loss = PoissonLogRate()
        value = loss(tf.constant([1000.0]), tf.constant([6.0], "bfloat16"))
        element = poisson_log_rate([1000.0], tf.constant([6.0], "bfloat16"))
    finally:
        keras.config.set_dtype_policy("float32")
    assert value.dtype == element.dtype == "float32"
    assert float(value) == pytest.approx(math.exp(6.0) - 6000.0, rel=1e-6)


def test_last_axis_of_size_one_does_not_broadcast():
    flat_true, flat_rate = [1.0, 2.0, 3.0], [0.1, 0.2, 0.3]
    expected = elements(flat_true, flat_rate)
    column_true = [[value] for value in flat_true]
    column_rate = [[value] for value in flat_rate]
    np.testing.assert_array_equal(elements(column_true, flat_rate), expected)
    np.testing.assert_array_equal(
        elements(flat_true, column_rate), expected[:, None]
    )
    np.testing.assert_array_equal(
        elements(column_true, column_rate), expected[:, None]
    )


def test_parameters_of_a_hurdle_are_no_log_rates():
    with pytest.raises(ValueError, match=r"`joint_hurdle`.*\(8, 1\).*\(8, 4\)"):
        PoissonLogRate()(tf.ones((8, 1)), tf.ones((8, 4)))


def test_other_shapes_are_rejected():
    with pytest.raises(
        ValueError,
        match=r"same shape, .*y_true.shape=\(3,\), log_rate.shape=\(3, 2\)",
    ):
        elements([1.0, 2.0, 3.0], [[0.0, 0.0]] * 3)


def test_what_the_weighted_mean_divides_by():
    y_true, log_rate = [1.0, 4.0, 0.0], [0.0, 0.5, 1.0]
    values = elements(y_true, log_rate)
    weights = [2.0, 0.5, 0.0]
    total = 2.0 * values[0] + 0.5 * values[1]
    by_default = PoissonLogRate()(y_true, log_rate, weights)
    assert float(by_default) == pytest.approx(total / 3, rel=1e-5)
    by_weight = PoissonLogRate(reduction="mean_with_sample_weight")
    assert float(by_weight(y_true, log_rate, weights)) == pytest.approx(
        total / 2.5, rel=1e-5
    )
    unreduced = PoissonLogRate(reduction=None)(y_true, log_rate)
    np.testing.assert_array_equal(unreduced, values)


def test_round_trip():
    loss = PoissonLogRate(reduction="sum", name="clicks")
    config = json.loads(json.dumps(keras.losses.serialize(loss)))
    copy = keras.losses.deserialize(config)
    assert isinstance(copy, PoissonLogRate)
    assert copy.get_config() == loss.get_config()
    function = keras.losses.deserialize(
        keras.losses.serialize(poisson_log_rate)
    )
    assert function is poisson_log_rate


def test_compiled_model_minimises_the_joint_loss(tmp_path):
    """Eq. 19: the weighted sum of the tasks' means and the penalty."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    penalty = keras.regularizers.L2(0.01)
    outputs = {
        task: keras.layers.Dense(1, kernel_regularizer=penalty, name=task)(
            inputs
        )
        for task in ("clicks", "sales")
    }
    model = keras.Model(inputs, outputs)
    weights = {"clicks": 1.0, "sales": 0.1}
    model.compile(
        loss={task: PoissonLogRate() for task in weights},
        loss_weights=weights,
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 3)).astype("float32")
    y = {task: rng.poisson(2.0, (8, 1)).astype("float32") for task in weights}

    loss = model.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)

    expected = 0.0
    for task, task_weight in weights.items():
        kernel, bias = model.get_layer(task).get_weights()
        task_loss = 0.0
        for row, label in zip(x, y[task][:, 0], strict=True):
            log_rate = float(row @ kernel[:, 0] + bias[0])
            task_loss += (math.exp(log_rate) - label * log_rate) / 8
        expected += task_weight * task_loss + 0.01 * (kernel**2).sum()
    assert loss["loss"] == pytest.approx(expected, rel=1e-5)

    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    reloaded = keras.models.load_model(tmp_path / "model.keras")
    again = reloaded.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)
    assert again["loss"] == pytest.approx(loss["loss"], rel=1e-6)


PARAMETERS = [
    [0.3, -1.0, 1.2, -0.5],
    [1.0, 2.0, 0.1, 0.4],
    [0.0, 0.0, 5.0, -2.5],
]


def reference_likelihood(y, zero_logit, location, log_scale, limit=math.inf):
    """Float64, with the difference of two distribution functions as it is."""
    zero = 1 / (1 + math.exp(-zero_logit))
    if y == 0:
        return zero

    def up_to(value):
        z = (math.log(value) - location) / math.exp(log_scale)
        return 1 / (1 + math.exp(-z))

    highest = 1 if y >= limit else up_to(y + 0.5)
    return (1 - zero) * (highest - (up_to(y - 0.5) if y > 1 else 0))


@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("y", [0.0, 0.4, 1.0, 2.0, 7.0, 40.25, 180.0])
def test_hurdle_equals_the_reference(parameters, y):
    loss = hurdle_negative_log_likelihood([y], [parameters])
    expected = -math.log(reference_likelihood(y, *parameters[1:]))
    assert float(loss[0]) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("limit", [1, 7])
def test_a_label_at_the_limit_stands_for_all_above(parameters, limit):
    labels = np.arange(limit + 1, dtype="float32")
    repeated = np.repeat([parameters], len(labels), 0)
    losses = hurdle_negative_log_likelihood(labels, repeated, limit=limit)
    expected = [
        -math.log(reference_likelihood(y, *parameters[1:], limit))
        for y in labels
    ]
    np.testing.assert_allclose(losses, expected, rtol=2e-3)
    # Nothing is left for what cannot be.
    assert np.exp(-losses).sum() == pytest.approx(1, abs=1e-3)
    told = joint_hurdle({"a": 2.0}, {"a": 1.0}, {"a": limit})["a"]
    copy = HurdleLoss.from_config(told.get_config())
    mean = poisson_log_rate(labels, repeated[:, 0])
    for loss in (told, copy):
        np.testing.assert_allclose(
            loss.call(labels[:, None], repeated), mean + 1.5 * losses, rtol=1e-5
        )


@pytest.mark.parametrize("y", [0.0, 0.4, 7.0, 180.0])
def test_amounts_in_another_unit_have_the_same_likelihood(y):
    parameters = np.array(PARAMETERS, "float32")
    other = parameters + [0, 0, math.log(0.001), 0]
    for ours, theirs in (
        (
            hurdle_negative_log_likelihood([y] * 3, parameters),
            hurdle_negative_log_likelihood([0.001 * y] * 3, other, unit=0.001),
        ),
        (
            joint_hurdle({"a": 2.0})["a"].call([[y]] * 3, parameters),
            joint_hurdle({"a": 2.0}, {"a": 0.001})["a"].call(
                [[0.001 * y]] * 3, other
            )
            + poisson_log_rate([y] * 3, parameters[:, 0])
            - poisson_log_rate([0.001 * y] * 3, parameters[:, 0]),
        ),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_hurdle_probabilities_of_all_counts_add_up_to_one(parameters):
    counts = np.arange(100_000, dtype="float32")
    losses = hurdle_negative_log_likelihood(
        counts, np.repeat([parameters], len(counts), 0)
    )
    assert np.exp(-losses).sum() == pytest.approx(1, abs=2e-3)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    y=st.floats(0, 1e6, width=32),
    parameters=st.tuples(
        st.floats(-20, 20),
        st.floats(-20, 20),
        st.floats(-15, 15),
        st.floats(-3, 3),
    ),
)
@example(y=683641.0, parameters=(0.0, 0.0, -3.0, 0.0))  # log(y ± 1/2) agree
@pytest.mark.parametrize("limit", [None, 7])
def test_hurdle_loss_and_gradient_are_finite(limit, y, parameters):
    parameters = tf.constant([parameters], "float32")
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        loss = hurdle_negative_log_likelihood([y], parameters, limit=limit)
    assert np.isfinite(loss).all()
    assert np.isfinite(tape.gradient(loss, parameters)).all()


def test_hurdle_loss_adds_the_weighted_likelihood():
    y_true, parameters = [[2.0], [0.0], [5.0]], np.array(PARAMETERS, "float32")
    mean = poisson_log_rate(y_true, parameters[:, :1])[:, 0]
    shape = hurdle_negative_log_likelihood(y_true, parameters)
    assert float(HurdleLoss(0.5)(y_true, parameters)) == pytest.approx(
        float(tf.reduce_mean(mean + 0.5 * shape)), rel=1e-6
    )
    # Each likelihood weighs 3 in the joint loss, whatever its λ.
    assert joint_hurdle({"sales": 0.25})["sales"].shape_weight == 12.0

"""Checks that every layer of `m2m_tf` has to pass, and test helpers."""

import json

import keras
import numpy as np
import tensorflow as tf


def leaky_relu(value):
    """LeakyReLU of one number, with Keras' default slope."""
    return value if value >= 0 else 0.2 * value


def normal(seed, *shape):
    """A float32 array of standard normal numbers."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape).astype("float32")


def randomize_weights(layer, seed=0, scale=0.5):
    """Gives every weight random values, biases included."""
    rng = np.random.default_rng(seed)
    for weight in layer.weights:
        weight.assign(rng.normal(scale=scale, size=weight.shape))
    return layer


def to_numpy(tensor):
    """A float32 array of a tensor or weight (NumPy has no bfloat16)."""
    return tf.cast(tf.convert_to_tensor(tensor), "float32").numpy()


def run_layer_checks(
    tmp_path,
    make_layer,
    inputs,
    num_weights,
    num_parameters,
    unbatched=(),
    mixed_output_dtype="bfloat16",
):
    """Runs all checks.

    Args:
        tmp_path: Folder for saved models.
        make_layer: Function of layer keyword arguments (`dtype`) that
            returns a new layer.
        inputs: Dict from the names of `call`'s arguments to NumPy arrays,
            with a batch of at least two rows.
        num_weights: Expected number of weights.
        num_parameters: Expected number of scalars in them.
        unbatched: Names of the inputs without a batch axis.
        mixed_output_dtype: Expected dtype of the output under the policy
            `mixed_bfloat16`.
    """
    shapes = {
        name: array.shape if name in unbatched else (None, *array.shape[1:])
        for name, array in inputs.items()
    }
    layer = make_layer()
    check_config_round_trip(layer)
    check_build_from_shapes(layer, shapes, num_weights, num_parameters)
    randomize_weights(layer)
    tensors = {
        name: keras.ops.convert_to_tensor(array)
        for name, array in inputs.items()
    }
    outputs = to_numpy(layer(**tensors))
    assert np.all(np.isfinite(outputs))
    assert layer.count_params() == num_parameters, "call added weights"

    check_symbolic_shape(layer, tensors, shapes, outputs)
    check_row_alone(layer, tensors, unbatched, outputs)
    check_reload(tmp_path, layer, tensors, shapes, outputs)
    check_mixed_precision(
        make_layer, layer, tensors, shapes, outputs, mixed_output_dtype
    )
    check_compiled_training_step(layer, tensors, shapes, outputs)


def check_config_round_trip(layer):
    config = layer.get_config()
    copy = type(layer).from_config(config)
    assert copy.get_config() == config
    # What `.keras` files go through: JSON turns tuples into lists.
    serialized = json.loads(
        json.dumps(keras.saving.serialize_keras_object(layer))
    )
    copy = keras.saving.deserialize_keras_object(serialized)
    assert type(copy) is type(layer)
    assert copy.get_config() == config


def check_build_from_shapes(layer, shapes, num_weights, num_parameters):
    build(layer, shapes)
    assert layer.built
    assert len(layer.weights) == num_weights
    assert layer.count_params() == num_parameters
    paths = [weight.path for weight in layer.weights]
    assert len(set(paths)) == len(paths), "two weights have the same path"


def check_symbolic_shape(layer, tensors, shapes, outputs):
    symbolic = layer(
        **{
            name: keras.KerasTensor(shapes[name], dtype=tensor.dtype)
            for name, tensor in tensors.items()
        }
    )
    assert len(symbolic.shape) == outputs.ndim
    for expected, size in zip(symbolic.shape, outputs.shape):
        assert expected in (None, size)
    assert symbolic.dtype == keras.backend.standardize_dtype(
        layer(**tensors).dtype
    )


def check_row_alone(layer, tensors, unbatched, outputs):
    for row in (0, 1):
        alone = layer(
            **{
                name: tensor if name in unbatched else tensor[row : row + 1]
                for name, tensor in tensors.items()
            }
        )
        if alone.shape[0] == 1:
            np.testing.assert_allclose(
                to_numpy(alone)[0], outputs[row], rtol=1e-5, atol=1e-5
            )
        else:  # A result without a batch axis must not depend on the batch.
            np.testing.assert_allclose(to_numpy(alone), outputs)


def check_reload(tmp_path, layer, tensors, shapes, outputs):
    model_inputs = {
        name: keras.Input(
            batch_shape=shapes[name], dtype=tensor.dtype.name, name=name
        )
        for name, tensor in tensors.items()
    }
    model = keras.Model(model_inputs, layer(**model_inputs))
    path = tmp_path / "layer.keras"
    model.save(path)
    reloaded = keras.models.load_model(path)
    np.testing.assert_array_equal(to_numpy(reloaded(tensors)), outputs)


def check_mixed_precision(
    make_layer, layer, tensors, shapes, outputs, output_dtype
):
    mixed = make_layer(dtype="mixed_bfloat16")
    build(mixed, shapes)
    for weight, value in zip(mixed.weights, layer.weights, strict=True):
        assert weight.dtype == "float32"
        weight.assign(value)
    mixed_outputs = mixed(**tensors)
    assert mixed_outputs.dtype == output_dtype
    # bfloat16 keeps 8 bits: a few of them go in a handful of layers.
    tolerance = 0.05 * max(1.0, float(np.abs(outputs).max()))
    np.testing.assert_allclose(to_numpy(mixed_outputs), outputs, atol=tolerance)


def check_compiled_training_step(layer, tensors, shapes, outputs):
    """One XLA-compiled step of unknown batch size moves every weight."""
    signature = {
        name: tf.TensorSpec(shapes[name], tensor.dtype)
        for name, tensor in tensors.items()
    }
    # Different targets for the entries, lest gradients cancel.
    targets = tf.constant(normal(11, *outputs.shape))
    variables = [weight.value for weight in layer.trainable_weights]

    @tf.function(jit_compile=True, input_signature=[signature])
    def outputs_and_gradients(inputs):
        with tf.GradientTape() as tape:
            outputs = layer(**inputs)
            loss = tf.reduce_sum(tf.square(outputs - targets))
        return outputs, tape.gradient(loss, variables)

    compiled, gradients = outputs_and_gradients(tensors)
    np.testing.assert_allclose(compiled, outputs, rtol=1e-4, atol=1e-4)
    before = [to_numpy(weight) for weight in layer.trainable_weights]
    optimizer = keras.optimizers.SGD(0.01)
    optimizer.apply(
        [tf.convert_to_tensor(gradient) for gradient in gradients],
        layer.trainable_weights,
    )
    for weight, old in zip(layer.trainable_weights, before):
        new = to_numpy(weight)
        assert np.all(np.isfinite(new)), weight.path
        assert np.any(new != old), f"no gradient reached {weight.path}"


def build(layer, shapes):
    """Builds from shapes, given by name when `call` has several inputs."""
    if len(shapes) == 1:
        layer.build(next(iter(shapes.values())))
    else:
        layer.build(
            **{f"{name}_shape": shape for name, shape in shapes.items()}
        )

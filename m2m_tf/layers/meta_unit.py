"""Stacks of generated layers, and the ordinary stack they replace."""

import keras
from keras import activations, ops, regularizers

from m2m_tf.layers._arguments import require_positive_int, require_rank
from m2m_tf.layers.meta_dense import MetaDense


@keras.saving.register_keras_serializable("m2m_tf")
class MetaUnit(keras.layers.Layer):
    """K generated dense layers of the input's width, the paper's `Meta`.

    Equations 9-13, for an input of width d_in:

        h⁽⁰⁾ = inputs
        h⁽ⁱ⁾ = σ(W⁽ⁱ⁻¹⁾ h⁽ⁱ⁻¹⁾ + b⁽ⁱ⁻¹⁾),  i = 1..K
        output = h⁽ᴷ⁾

    Each of the K layers is a `MetaDense` with its own generator.

    Args:
        num_layers: K, number of generated layers. 3 is best in the paper's
            figure 6.
        rank: Rank of the generated part of each kernel, see `MetaDense`.
        activation: Activation σ of every layer.
        generator_regularizer: Regularizer of all weights, see `MetaDense`.
        **kwargs: Keras layer arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: Float tensor `[batch, ..., d_in]`.
        scenario_knowledge: Float tensor `[batch, d]`.
        shared_inputs: Float tensor `[num_shared, d_shared]`, or None: h⁽⁰⁾
            is then every pair of a row of `inputs` and one of these, see
            `MetaDense`.

    Input shape:
        `[batch, ..., d_in]` and `[batch, d]`.

    Output shape:
        `[batch, ..., d_in]`; of pairs `[batch, num_shared, rows, width]`
        with the width of a pair.

    Example:

    >>> inputs = keras.random.normal((8, 5, 16))
    >>> scenario_knowledge = keras.random.normal((8, 4))
    >>> MetaUnit(num_layers=2)(inputs, scenario_knowledge).shape
    TensorShape([8, 5, 16])
    """

    def __init__(
        self,
        num_layers=3,
        rank=None,
        activation="leaky_relu",
        generator_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_layers = require_positive_int("num_layers", num_layers)
        self.rank = require_rank(rank)
        self.activation = activations.get(activation)
        self.generator_regularizer = regularizers.get(generator_regularizer)

    def build(
        self, inputs_shape, scenario_knowledge_shape, shared_inputs_shape=None
    ):
        self.meta_layers = []
        width = self.compute_output_shape(
            inputs_shape, scenario_knowledge_shape, shared_inputs_shape
        )[-1]
        for index in range(self.num_layers):
            layer = MetaDense(
                width,
                activation=self.activation,
                rank=self.rank,
                generator_regularizer=self.generator_regularizer,
                dtype=self.dtype_policy,
                name=f"meta_dense_{index}",
            )
            layer.build(
                inputs_shape, scenario_knowledge_shape, shared_inputs_shape
            )
            self.meta_layers.append(layer)
            # What the next layer gets.
            inputs_shape = layer.compute_output_shape(
                inputs_shape, scenario_knowledge_shape, shared_inputs_shape
            )
            shared_inputs_shape = None

    def call(self, inputs, scenario_knowledge, shared_inputs=None):
        first, *others = self.meta_layers
        hidden = first(inputs, scenario_knowledge, shared_inputs)
        for layer in others:
            hidden = layer(hidden, scenario_knowledge)
        return hidden

    def compute_output_shape(
        self, inputs_shape, scenario_knowledge_shape, shared_inputs_shape=None
    ):
        return _paired_shape(inputs_shape, shared_inputs_shape)

    def get_config(self):
        config = super().get_config()
        config.update(
            {
                "num_layers": self.num_layers,
                "rank": self.rank,
                "activation": activations.serialize(self.activation),
                "generator_regularizer": regularizers.serialize(
                    self.generator_regularizer
                ),
            }
        )
        return config


@keras.saving.register_keras_serializable("m2m_tf")
class DenseUnit(keras.layers.Layer):
    """K ordinary dense layers of the input's width.

    The counterpart of `MetaUnit` in the ablations: equations 9, 10 and 13
    with kernels and biases that are weights instead of generated. It takes
    scenario knowledge and ignores it, so that it can stand in place of a
    `MetaUnit`.

    Args:
        num_layers: K, number of layers.
        activation: Activation σ of every layer.
        kernel_regularizer: Regularizer of the kernels.
        **kwargs: Keras layer arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: Float tensor `[batch, ..., d_in]`.
        scenario_knowledge: Ignored.
        shared_inputs: As in `MetaUnit`.

    Input shape:
        `[batch, ..., d_in]`.

    Output shape:
        As that of `MetaUnit`.

    Example:

    >>> DenseUnit(num_layers=2)(keras.random.normal((8, 5, 16))).shape
    TensorShape([8, 5, 16])
    """

    def __init__(
        self,
        num_layers=3,
        activation="leaky_relu",
        kernel_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_layers = require_positive_int("num_layers", num_layers)
        self.activation = activations.get(activation)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)

    def build(
        self,
        inputs_shape,
        scenario_knowledge_shape=None,
        shared_inputs_shape=None,
    ):
        inputs_shape = _paired_shape(inputs_shape, shared_inputs_shape)
        self.dense_layers = []
        for index in range(self.num_layers):
            layer = keras.layers.Dense(
                inputs_shape[-1],
                activation=self.activation,
                kernel_initializer="he_normal",
                kernel_regularizer=self.kernel_regularizer,
                dtype=self.dtype_policy,
                name=f"dense_{index}",
            )
            layer.build(inputs_shape)
            self.dense_layers.append(layer)

    def call(self, inputs, scenario_knowledge=None, shared_inputs=None):
        hidden = inputs
        if shared_inputs is not None:
            hidden = _make_pairs(inputs, shared_inputs)
        for layer in self.dense_layers:
            hidden = layer(hidden)
        return hidden

    def compute_output_shape(
        self,
        inputs_shape,
        scenario_knowledge_shape=None,
        shared_inputs_shape=None,
    ):
        return _paired_shape(inputs_shape, shared_inputs_shape)

    def get_config(self):
        config = super().get_config()
        config.update(
            {
                "num_layers": self.num_layers,
                "activation": activations.serialize(self.activation),
                "kernel_regularizer": regularizers.serialize(
                    self.kernel_regularizer
                ),
            }
        )
        return config


@keras.saving.register_keras_serializable("m2m_tf")
class TaskMetaUnit(keras.layers.Layer):
    """`Meta` applied to inputs with an axis of tasks.

    Eq. 14 writes `Meta_t`. With `share_across_tasks` one unit serves all
    tasks, otherwise task t has unit t. `MetaAttention` and
    `MetaResidualTower` differ only in what they feed to it.

    Args:
        num_layers: K, number of layers of a unit.
        rank: Rank of the generated part of each kernel, see `MetaDense`.
        share_across_tasks: Whether one unit serves all tasks.
        generated: True for `MetaUnit`, False for `DenseUnit` (ablation).
        generator_regularizer: Regularizer of the weights of a `MetaUnit`.
        kernel_regularizer: Regularizer of the kernels of a `DenseUnit`.
        **kwargs: Keras layer arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: Float tensor `[batch, num_tasks, ..., width]`.
        scenario_knowledge: Float tensor `[batch, d]`.
        task_views: Float tensor `[num_tasks, d_task]`, or None. With it
            `inputs` are `[batch, rows, d_rows]`, the same for all tasks, and
            task t's unit is applied to [row ‖ T_t], width d_rows + d_task.

    Input shape:
        `[batch, num_tasks, ..., width]` and `[batch, d]`.

    Output shape:
        `[batch, num_tasks, ..., width]`.

    Example:

    >>> inputs = keras.random.normal((8, 2, 16))
    >>> scenario_knowledge = keras.random.normal((8, 4))
    >>> unit = TaskMetaUnit(num_layers=1, share_across_tasks=False)
    >>> unit(inputs, scenario_knowledge).shape
    TensorShape([8, 2, 16])
    """

    def __init__(
        self,
        num_layers=3,
        rank=None,
        share_across_tasks=True,
        generated=True,
        generator_regularizer=None,
        kernel_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_layers = require_positive_int("num_layers", num_layers)
        self.rank = require_rank(rank)
        self.share_across_tasks = share_across_tasks
        self.generated = generated
        self.generator_regularizer = regularizers.get(generator_regularizer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)

    def build(
        self, inputs_shape, scenario_knowledge_shape, task_views_shape=None
    ):
        if self.share_across_tasks:
            unit = self._make_unit("unit")
            unit.build(inputs_shape, scenario_knowledge_shape, task_views_shape)
            self.units = [unit]
            return
        if task_views_shape is None:
            # A task's own rows: the axis of tasks is gone.
            num_tasks, view_shape = inputs_shape[1], None
            task_shape = (inputs_shape[0], *inputs_shape[2:])
        else:
            num_tasks, view_dim = task_views_shape
            view_shape, task_shape = (1, view_dim), inputs_shape
        self.units = []
        for task in range(num_tasks):
            unit = self._make_unit(f"unit_{task}")
            unit.build(task_shape, scenario_knowledge_shape, view_shape)
            self.units.append(unit)

    def call(self, inputs, scenario_knowledge, task_views=None):
        if self.share_across_tasks:
            return self.units[0](inputs, scenario_knowledge, task_views)
        if task_views is None:
            # Unstacked, as the gradients of slices would each be written whole.
            outputs = [
                unit(rows, scenario_knowledge)
                for unit, rows in zip(
                    self.units, ops.unstack(inputs, axis=1), strict=True
                )
            ]
            return ops.stack(outputs, axis=1)
        outputs = [
            unit(inputs, scenario_knowledge, task_views[task : task + 1])
            for task, unit in enumerate(self.units)
        ]
        return ops.concatenate(outputs, axis=1)

    def _make_unit(self, name):
        if self.generated:
            return MetaUnit(
                self.num_layers,
                rank=self.rank,
                generator_regularizer=self.generator_regularizer,
                dtype=self.dtype_policy,
                name=name,
            )
        return DenseUnit(
            self.num_layers,
            kernel_regularizer=self.kernel_regularizer,
            dtype=self.dtype_policy,
            name=name,
        )

    def compute_output_shape(
        self, inputs_shape, scenario_knowledge_shape, task_views_shape=None
    ):
        return _paired_shape(inputs_shape, task_views_shape)

    def get_config(self):
        config = super().get_config()
        config.update(
            {
                "num_layers": self.num_layers,
                "rank": self.rank,
                "share_across_tasks": self.share_across_tasks,
                "generated": self.generated,
                "generator_regularizer": regularizers.serialize(
                    self.generator_regularizer
                ),
                "kernel_regularizer": regularizers.serialize(
                    self.kernel_regularizer
                ),
            }
        )
        return config


def _paired_shape(inputs_shape, shared_inputs_shape):
    """Shape of all pairs of `inputs` and `shared_inputs`, if there are any."""
    if shared_inputs_shape is None:
        return tuple(inputs_shape)
    batch, rows, width = inputs_shape
    num_shared, shared_width = shared_inputs_shape
    return (batch, num_shared, rows, width + shared_width)


def _make_pairs(inputs, shared_inputs):
    """[row ‖ shared row] of each: `[batch, num_shared, rows, width]`."""
    num_rows, num_shared = inputs.shape[1], shared_inputs.shape[0]
    rows = ops.tile(ops.expand_dims(inputs, axis=1), (1, num_shared, 1, 1))
    shared = ops.reshape(shared_inputs, (1, num_shared, 1, -1))
    shared = ops.tile(shared, (ops.shape(inputs)[0], 1, num_rows, 1))
    return ops.concatenate([rows, shared], axis=-1)

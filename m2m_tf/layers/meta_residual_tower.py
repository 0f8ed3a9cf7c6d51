"""Residual layers with generated weights on each task's representation."""

import keras
from keras import ops, regularizers

from m2m_tf.layers._arguments import require_positive_int, require_rank
from m2m_tf.layers.meta_unit import TaskMetaUnit


@keras.saving.register_keras_serializable("m2m_tf")
class MetaResidualTower(keras.layers.Layer):
    """L residual layers around meta units, for each task.

    With R_t the attention's result for task t (eq. 17-18):

        L_t⁽⁰⁾ = R_t
        L_t⁽ʲ⁾ = σ(Meta⁽ʲ⁻¹⁾(L_t⁽ʲ⁻¹⁾) + L_t⁽ʲ⁻¹⁾),  j = 1..L

    σ is LeakyReLU. Each j has a meta unit of its own. The residual carries
    the gradient to the experts while the generated kernels are still small.

    Reference:

    - Zhang et al., WSDM 2022, section 4.2.3.

    Args:
        num_layers: L, number of residual layers. The paper does not give it.
        num_meta_layers: K, number of layers of a meta unit.
        rank: Rank of the generated part of each kernel, see `MetaDense`.
        share_meta_across_tasks: Whether the tasks share the meta unit of a
            residual layer (L_t⁽⁰⁾ tells them apart) or have one each.
        generated: False replaces the generated kernels by ordinary ones, the
            paper's ablation without meta tower.
        generator_regularizer: Regularizer of the generators (W_1, eq. 19).
        kernel_regularizer: Regularizer of the ordinary kernels (W_2).
        **kwargs: Keras layer arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: R, float tensor `[batch, num_tasks, d1]`.
        scenario_knowledge: S, float tensor `[batch, d]`.

    Input shape:
        `[batch, num_tasks, d1]` and `[batch, d]`.

    Output shape:
        `[batch, num_tasks, d1]`.

    Example:

    >>> inputs = keras.random.normal((8, 5, 16))
    >>> scenario_knowledge = keras.random.normal((8, 4))
    >>> tower = MetaResidualTower(num_layers=2, num_meta_layers=1)
    >>> tower(inputs, scenario_knowledge).shape
    TensorShape([8, 5, 16])
    """

    def __init__(
        self,
        num_layers=2,
        num_meta_layers=3,
        rank=None,
        share_meta_across_tasks=True,
        generated=True,
        generator_regularizer=None,
        kernel_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_layers = require_positive_int("num_layers", num_layers)
        self.num_meta_layers = require_positive_int(
            "num_meta_layers", num_meta_layers
        )
        self.rank = require_rank(rank)
        self.share_meta_across_tasks = share_meta_across_tasks
        self.generated = generated
        self.generator_regularizer = regularizers.get(generator_regularizer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)

    def build(self, inputs_shape, scenario_knowledge_shape):
        if len(inputs_shape) != 3 or None in inputs_shape[1:]:
            raise ValueError(
                "`inputs` must have shape [batch, num_tasks, d1] with known "
                "last two axes. "
                f"Received: inputs.shape={tuple(inputs_shape)}"
            )
        self.meta_units = []
        for index in range(self.num_layers):
            unit = TaskMetaUnit(
                self.num_meta_layers,
                rank=self.rank,
                share_across_tasks=self.share_meta_across_tasks,
                generated=self.generated,
                generator_regularizer=self.generator_regularizer,
                kernel_regularizer=self.kernel_regularizer,
                dtype=self.dtype_policy,
                name=f"meta_unit_{index}",
            )
            unit.build(inputs_shape, scenario_knowledge_shape)
            self.meta_units.append(unit)

    def call(self, inputs, scenario_knowledge):
        hidden = inputs
        for unit in self.meta_units:
            hidden = ops.leaky_relu(unit(hidden, scenario_knowledge) + hidden)
        return hidden

    def compute_output_shape(self, inputs_shape, scenario_knowledge_shape):
        return inputs_shape

    def get_config(self):
        config = super().get_config()
        config.update(
            {
                "num_layers": self.num_layers,
                "num_meta_layers": self.num_meta_layers,
                "rank": self.rank,
                "share_meta_across_tasks": self.share_meta_across_tasks,
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

"""One softmax gate per task over expert views."""

import keras
from keras import initializers, ops, regularizers

from m2m_tf.layers._fan_in import step_divisor
from m2m_tf.regularizers import of_fraction


@keras.saving.register_keras_serializable("m2m_tf")
class GatedExperts(keras.layers.Layer):
    """Weights the expert views of a sample by a gate of each task.

    With F the input of the experts and E_i their views:

        g_t = softmax(W_t F)
        R_t = Σ_i g_ti E_i

    That is MMoE (Ma et al., KDD 2018, eq. 6-8). With `num_own_experts` m, the
    first m views belong to task 1, the next m to task 2 and so on, and only
    the views after those are shared: a task's gate then covers its own and
    the shared ones, which is CGC (Tang et al., RecSys 2020, eq. 1-3). W_t is
    held as a multiple where F has more than 512 entries, as `ExpertViews`
    holds its kernels.

    The softmax is computed in float32 whatever the dtype policy.

    Args:
        num_tasks: Number of gates.
        num_own_experts: m, expert views that a task has to itself.
        kernel_regularizer: Regularizer of W.
        **kwargs: Keras layer arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: F, float tensor `[batch, d_in]`.
        expert_views: E, float tensor `[batch, num_experts, d1]`.

    Output shape:
        `[batch, num_tasks, d1]`.

    Raises:
        ValueError: If the views are fewer than the tasks' own ones.

    Example:

    >>> features = keras.random.normal((8, 16))
    >>> expert_views = keras.random.normal((8, 4, 6))
    >>> GatedExperts(num_tasks=5)(features, expert_views).shape
    TensorShape([8, 5, 6])
    """

    def __init__(
        self, num_tasks, num_own_experts=0, kernel_regularizer=None, **kwargs
    ):
        super().__init__(**kwargs)
        if num_tasks < 1 or num_own_experts < 0:
            raise ValueError(
                "`num_tasks` must be positive and `num_own_experts` not "
                f"negative. Received: num_tasks={num_tasks}, "
                f"num_own_experts={num_own_experts}"
            )
        self.num_tasks = num_tasks
        self.num_own_experts = num_own_experts
        self.kernel_regularizer = regularizers.get(kernel_regularizer)

    def build(self, inputs_shape, expert_views_shape):
        num_shared = expert_views_shape[1] - self.num_tasks * (
            self.num_own_experts
        )
        if num_shared < 0:
            raise ValueError(
                f"{self.num_tasks} tasks with {self.num_own_experts} experts "
                "each need at least as many `expert_views`. Received: "
                f"expert_views.shape={tuple(expert_views_shape)}"
            )
        divisor = step_divisor(inputs_shape[-1])
        self.kernel = self.add_weight(
            name="kernel",
            shape=(
                self.num_tasks,
                inputs_shape[-1],
                self.num_own_experts + num_shared,
            ),
            # Glorot and Bengio's, of which 1 is the scale.
            initializer=initializers.VarianceScaling(
                divisor**2,
                mode="fan_avg",
                distribution="uniform",
                input_axes=[1],
                output_axes=[2],
            ),
            regularizer=of_fraction(self.kernel_regularizer, divisor),
        )

    def call(self, inputs, expert_views):
        gates = ops.einsum("bi,tig->btg", inputs, self.kernel)
        gates = gates / step_divisor(inputs.shape[-1])
        gates = ops.softmax(ops.cast(gates, "float32"), axis=-1)
        views = ops.cast(expert_views, "float32")
        own = self.num_own_experts
        shared = views[:, self.num_tasks * own :]
        outputs = ops.matmul(gates[..., own:], shared)
        if own:
            owned = ops.reshape(
                views[:, : self.num_tasks * own],
                (-1, self.num_tasks, own, views.shape[-1]),
            )
            outputs += ops.einsum("bto,btod->btd", gates[..., :own], owned)
        return ops.cast(outputs, self.compute_dtype)

    def compute_output_shape(self, inputs_shape, expert_views_shape):
        return (inputs_shape[0], self.num_tasks, expert_views_shape[-1])

    def get_config(self):
        return super().get_config() | {
            "num_tasks": self.num_tasks,
            "num_own_experts": self.num_own_experts,
            "kernel_regularizer": regularizers.serialize(
                self.kernel_regularizer
            ),
        }

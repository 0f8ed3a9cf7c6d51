"""Linear combinations of the activations of parallel task networks."""

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable("m2m_tf")
class CrossStitch(keras.layers.Layer):
    """Mixes each task's activations with those of the other tasks.

    With x_s the activations of task s (eq. 1 of the reference, for any number
    of tasks, one α for all units of a layer):

        x̃_t = Σ_s α_ts x_s

    Reference:

    - Misra et al., "Cross-stitch Networks for Multi-task Learning", CVPR
      2016, section 3.

    Args:
        initial_own: α_tt at the start; the rest of 1 is shared evenly by the
            other tasks, as the reference starts from a convex combination.
        **kwargs: Keras layer arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: x, float tensor `[batch, num_tasks, units]`.

    Output shape:
        That of the inputs.

    Example:

    >>> CrossStitch()(keras.ops.ones((2, 5, 16))).shape
    TensorShape([2, 5, 16])
    """

    def __init__(self, initial_own=0.9, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= initial_own <= 1:
            raise ValueError(
                "`initial_own` must be between 0 and 1. "
                f"Received: initial_own={initial_own}"
            )
        self.initial_own = initial_own

    def build(self, input_shape):
        num_tasks = input_shape[1]
        own = self.initial_own if num_tasks > 1 else 1.0
        values = np.full((num_tasks, num_tasks), 1.0 - own)
        values /= max(1, num_tasks - 1)
        np.fill_diagonal(values, own)
        self.mixing = self.add_weight(
            name="mixing",
            shape=values.shape,
            initializer=lambda shape, dtype=None: ops.convert_to_tensor(
                values, dtype
            ),
        )

    def call(self, inputs):
        return ops.einsum("ts,bsd->btd", self.mixing, inputs)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return super().get_config() | {"initial_own": self.initial_own}

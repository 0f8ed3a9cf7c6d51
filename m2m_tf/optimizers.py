"""Adam in one pass over the weights."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("m2m_tf")
class FusedAdam(keras.optimizers.Adam):
    """`keras.optimizers.Adam`, each variable's step one TensorFlow operation.

    The formula (Kingma and Ba, "Adam", 2015, in the form of its section 2.1
    with ε beside √v) and the saved state are those of Keras, whose step is a
    dozen operations that each read or write a tensor as large as the variable.
    (Of a sparse gradient that tells of a row more than once, as an embedding's
    without a penalty may, Keras' step takes the last part alone; here the
    parts are added up.)
    At the paper's sizes generators have 10⁸ weights, and memory is what Adam
    waits for: `docs/results/step_profile.md` has its share of a step.

    Args:
        *args: Those of `keras.optimizers.Adam`.
        **kwargs: Likewise. With `amsgrad` Keras' own step is taken.

    Example:

    >>> optimizer = FusedAdam(2e-3, beta_2=0.998, clipvalue=3.0)
    >>> model.compile(optimizer, loss="mse")
    """

    def update_step(self, gradient, variable, learning_rate):
        if self.amsgrad:
            super().update_step(gradient, variable, learning_rate)
            return
        index = self._get_variable_index(variable)
        dtype = variable.dtype
        step = keras.ops.cast(self.iterations + 1, dtype)
        beta_1, beta_2 = (
            tf.constant(beta, dtype) for beta in (self.beta_1, self.beta_2)
        )
        tf.raw_ops.ResourceApplyAdam(
            # Keras hands TensorFlow's variable over, not its own.
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=beta_1**step,
            beta2_power=beta_2**step,
            lr=tf.cast(learning_rate, dtype),
            beta1=beta_1,
            beta2=beta_2,
            epsilon=tf.constant(self.epsilon, dtype),
            # Gradients of embeddings name the rows they are of.
            grad=tf.cast(tf.convert_to_tensor(gradient), dtype),
        )

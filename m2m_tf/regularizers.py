"""The penalty α‖W‖² of eq. 19."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("m2m_tf")
class L2(keras.regularizers.L2):
    """`keras.regularizers.L2` that reads the weight once.

    Keras squares into a tensor as large as the weight and sums that, and its
    gradient makes two more. `tf.nn.l2_loss` makes none, and one.

    Args:
        l2: α of eq. 19.

    Example:

    >>> float(L2(0.5)(tf.constant([1.0, 2.0])))
    2.5
    """

    def __call__(self, x):
        return 2.0 * float(self.l2) * tf.nn.l2_loss(tf.convert_to_tensor(x))

    def scaled(self, factor: float) -> "L2":
        """The penalty of `factor` times a weight."""
        return L2(self.l2 * factor**2)

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


def of_fraction(regularizer, divisor: float):
    """The penalty of a weight that is held `divisor` times.

    Args:
        regularizer: Keras regularizer or None.
        divisor: What the weight is divided by before it is penalised.

    Example:

    >>> float(of_fraction(L2(0.5), 2.0)(tf.constant([2.0, 4.0])))
    2.5
    """
    if regularizer is None or divisor == 1:
        return regularizer
    # A subclass may have a penalty of its own.
    if type(regularizer) is L2:
        # Without a copy of what may be most of the model's weights.
        return L2(regularizer.l2 / divisor**2)
    return lambda weight: regularizer(weight / divisor)

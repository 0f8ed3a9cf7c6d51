"""Attention among features, from tasks to features, and among tasks."""

import keras
from keras import initializers, ops, regularizers

from m2m_tf.layers._arguments import require_positive_int


@keras.saving.register_keras_serializable("m2m_tf")
class TaskRelationAttention(keras.layers.Layer):
    """Three relations of a multi-task network, each learned by attention.

    With fields f_i of a sample (parts of its features), trained embeddings
    e_t of the tasks, and

        A(q, x)_j = Σ_i softmax_i(W_Q q_j · W_K x_i / √d) W_V x_i

    with matrices of its own for each use:

        feature-feature:  g = f + A(f, f)
        task-feature:     r = A(e, g)
        task-task:        R = r + A(r, r)

    That is MRAN (Zhao et al., KDD 2019), so far as its abstract tells: it
    names the three modules. One head, where the residuals stand and task
    embeddings as queries are choices of ours, with scaled dot products as in
    Vaswani et al. 2017. Each softmax is computed in float32.

    Args:
        num_tasks: Number of tasks.
        kernel_regularizer: Regularizer of the matrices and embeddings.
        **kwargs: Keras layer arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: f, float tensor `[batch, num_fields, d]`.

    Output shape:
        `[batch, num_tasks, d]`.

    Example:

    >>> fields = keras.random.normal((8, 6, 16))
    >>> TaskRelationAttention(num_tasks=5)(fields).shape
    TensorShape([8, 5, 16])
    """

    def __init__(self, num_tasks, kernel_regularizer=None, **kwargs):
        super().__init__(**kwargs)
        self.num_tasks = require_positive_int("num_tasks", num_tasks)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)

    def build(self, input_shape):
        if len(input_shape) != 3 or input_shape[-1] is None:
            raise ValueError(
                "`inputs` must have shape [batch, num_fields, d] with a known "
                f"last axis. Received: inputs.shape={tuple(input_shape)}"
            )
        width = input_shape[-1]
        self.task_embeddings = self.add_weight(
            name="task_embeddings",
            shape=(self.num_tasks, width),
            initializer=initializers.RandomNormal(stddev=1.0),
            regularizer=self.kernel_regularizer,
        )
        # Query, key and value matrices of the three relations.
        self.kernels = [
            self.add_weight(
                name=f"{name}_kernel",
                shape=(3, width, width),
                initializer=initializers.GlorotUniform(
                    input_axes=[1], output_axes=[2]
                ),
                regularizer=self.kernel_regularizer,
            )
            for name in ("feature_feature", "task_feature", "task_task")
        ]

    def call(self, inputs):
        fields = inputs + self._attend(inputs, inputs, self.kernels[0])
        tasks = ops.expand_dims(ops.convert_to_tensor(self.task_embeddings), 0)
        tasks = self._attend(tasks, fields, self.kernels[1])
        return tasks + self._attend(tasks, tasks, self.kernels[2])

    def _attend(self, queries, values, kernels):
        kernels = ops.convert_to_tensor(kernels)
        query = ops.matmul(queries, kernels[0])
        key = ops.matmul(values, kernels[1])
        scores = ops.matmul(query, ops.swapaxes(key, -1, -2))
        scores = ops.cast(scores, "float32") / query.shape[-1] ** 0.5
        weights = ops.cast(ops.softmax(scores, axis=-1), self.compute_dtype)
        return ops.matmul(weights, ops.matmul(values, kernels[2]))

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.num_tasks, input_shape[-1])

    def get_config(self):
        return super().get_config() | {
            "num_tasks": self.num_tasks,
            "kernel_regularizer": regularizers.serialize(
                self.kernel_regularizer
            ),
        }

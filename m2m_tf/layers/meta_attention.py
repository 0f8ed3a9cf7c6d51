"""Attention over experts with generated weights, one result per task."""

import keras
from keras import initializers, ops, regularizers

from m2m_tf.layers._arguments import require_positive_int, require_rank
from m2m_tf.layers.meta_unit import TaskMetaUnit


@keras.saving.register_keras_serializable("m2m_tf")
class MetaAttention(keras.layers.Layer):
    """Weights the expert views of a sample for each task.

    With k expert views E_i, task views T_t and scenario knowledge S that
    generates the weights of `Meta` (eq. 14-16):

        a_ti = vᵀ Meta_t([E_i ‖ T_t])
        α_ti = exp(a_ti) / Σ_j exp(a_tj),  the sum over the k experts
        R_t = Σ_i α_ti E_i

    The softmax and the weighted sum are computed in float32 whatever the
    dtype policy: the scores then sum to one and experts that agree give R_t
    equal to them.

    Reference:

    - Zhang et al., WSDM 2022, section 4.2.2.

    Args:
        num_meta_layers: K, number of layers of a meta unit.
        rank: Rank of the generated part of each kernel, see `MetaDense`.
        share_meta_across_tasks: Whether one meta unit and one vector v serve
            all tasks, which T_t then tells apart. False gives each task its
            own (Meta_t in eq. 14).
        generated: False replaces the generated kernels by ordinary ones, the
            paper's ablation without meta attention.
        generator_regularizer: Regularizer of the generators (W_1, eq. 19).
        kernel_regularizer: Regularizer of v, and of the ordinary kernels
            (W_2, eq. 19).
        **kwargs: Keras layer arguments, such as `name` and `dtype`.

    Call arguments:
        expert_views: E, float tensor `[batch, num_experts, d1]`.
        task_views: T, float tensor `[num_tasks, d2]`, without a batch axis.
        scenario_knowledge: S, float tensor `[batch, d]`.
        return_attention_scores: Whether to return the scores α too.

    Input shape:
        `[batch, num_experts, d1]`, `[num_tasks, d2]` and `[batch, d]`.

    Output shape:
        R `[batch, num_tasks, d1]`, and with `return_attention_scores` also α
        `[batch, num_tasks, num_experts]` in float32.

    Example:

    >>> expert_views = keras.random.normal((8, 4, 16))
    >>> task_views = keras.random.normal((5, 12))
    >>> scenario_knowledge = keras.random.normal((8, 6))
    >>> attention = MetaAttention(num_meta_layers=1)
    >>> attention(expert_views, task_views, scenario_knowledge).shape
    TensorShape([8, 5, 16])
    """

    def __init__(
        self,
        num_meta_layers=3,
        rank=None,
        share_meta_across_tasks=True,
        generated=True,
        generator_regularizer=None,
        kernel_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_meta_layers = require_positive_int(
            "num_meta_layers", num_meta_layers
        )
        self.rank = require_rank(rank)
        self.share_meta_across_tasks = share_meta_across_tasks
        self.generated = generated
        self.generator_regularizer = regularizers.get(generator_regularizer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)

    def build(
        self, expert_views_shape, task_views_shape, scenario_knowledge_shape
    ):
        self._check_shapes(expert_views_shape, task_views_shape)
        num_tasks, task_dim = task_views_shape
        pair_dim = expert_views_shape[-1] + task_dim
        self.meta_unit = TaskMetaUnit(
            self.num_meta_layers,
            rank=self.rank,
            share_across_tasks=self.share_meta_across_tasks,
            generated=self.generated,
            generator_regularizer=self.generator_regularizer,
            kernel_regularizer=self.kernel_regularizer,
            dtype=self.dtype_policy,
            name="meta_unit",
        )
        self.meta_unit.build(
            expert_views_shape, scenario_knowledge_shape, task_views_shape
        )
        # No bias beside v: the softmax would cancel it. Variance
        # 1 / pair_dim, so that scores start with variance about 1.
        self.score_vector = self.add_weight(
            name="score_vector",
            shape=(1 if self.share_meta_across_tasks else num_tasks, pair_dim),
            initializer=initializers.VarianceScaling(1.0, mode="fan_out"),
            regularizer=self.kernel_regularizer,
        )

    def call(
        self,
        expert_views,
        task_views,
        scenario_knowledge,
        return_attention_scores=False,
    ):
        hidden = self.meta_unit(expert_views, scenario_knowledge, task_views)
        # [batch, num_tasks, num_experts, pair_dim]
        # @ [num_tasks or 1, pair_dim, 1]
        scores = ops.cast(self._scores(hidden), "float32")
        attention_scores = ops.softmax(scores, axis=-1)
        # [batch, num_tasks, num_experts] @ [batch, num_experts, d1]
        outputs = ops.matmul(
            attention_scores, ops.cast(expert_views, "float32")
        )
        outputs = ops.cast(outputs, self.compute_dtype)
        if return_attention_scores:
            return outputs, attention_scores
        return outputs

    def _scores(self, hidden):
        """v_tᵀ h of each pair, `[batch, num_tasks, num_experts]`."""
        if self.score_vector.shape[0] == 1:
            # One vector is no batch of matrices: TensorFlow's CPU product of
            # [batch, 1, ...] with [1, 1, ...] writes beyond its result where
            # it is oneDNN's (tensorflow/tensorflow#117700).
            scores = ops.matmul(hidden, ops.transpose(self.score_vector))
        else:
            scores = ops.matmul(hidden, ops.expand_dims(self.score_vector, -1))
        return ops.squeeze(scores, axis=-1)

    def _check_shapes(self, expert_views_shape, task_views_shape):
        if len(expert_views_shape) != 3 or None in expert_views_shape[1:]:
            raise ValueError(
                "`expert_views` must have shape [batch, num_experts, d1] "
                "with known last two axes. Received: expert_views.shape="
                f"{tuple(expert_views_shape)}"
            )
        if len(task_views_shape) != 2 or None in task_views_shape:
            raise ValueError(
                "`task_views` must have the known shape [num_tasks, d2], "
                "without a batch axis. Received: task_views.shape="
                f"{tuple(task_views_shape)}"
            )

    def compute_output_shape(
        self, expert_views_shape, task_views_shape, scenario_knowledge_shape
    ):
        return (
            expert_views_shape[0],
            task_views_shape[0],
            expert_views_shape[2],
        )

    def compute_output_spec(
        self,
        expert_views,
        task_views,
        scenario_knowledge,
        return_attention_scores=False,
    ):
        # `compute_output_shape` sees shapes only, so it cannot know whether
        # the scores are asked for.
        output = keras.KerasTensor(
            self.compute_output_shape(
                expert_views.shape, task_views.shape, scenario_knowledge.shape
            ),
            dtype=self.compute_dtype,
        )
        if not return_attention_scores:
            return output
        batch, num_experts, _ = expert_views.shape
        scores = keras.KerasTensor(
            (batch, task_views.shape[0], num_experts), dtype="float32"
        )
        return output, scores

    def get_config(self):
        config = super().get_config()
        config.update(
            {
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

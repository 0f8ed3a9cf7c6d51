"""Keras layers of M2M and its rivals.

They know neither feature names nor task names.
"""

from m2m_tf.layers.column_embedding import ColumnEmbedding
from m2m_tf.layers.cross_stitch import CrossStitch
from m2m_tf.layers.expert_views import ExpertViews
from m2m_tf.layers.gated_experts import GatedExperts
from m2m_tf.layers.history_offset import HistoryOffset
from m2m_tf.layers.hurdle_heads import HurdleHeads
from m2m_tf.layers.log_rate_heads import LogRateHeads
from m2m_tf.layers.mean_forecast import MeanForecast
from m2m_tf.layers.meta_attention import MetaAttention
from m2m_tf.layers.meta_dense import MetaDense
from m2m_tf.layers.meta_residual_tower import MetaResidualTower
from m2m_tf.layers.meta_unit import DenseUnit, MetaUnit, TaskMetaUnit
from m2m_tf.layers.scenario_knowledge import ScenarioKnowledge
from m2m_tf.layers.sequence_encoder import SequenceEncoder
from m2m_tf.layers.task_dense import TaskDense
from m2m_tf.layers.task_relation_attention import TaskRelationAttention
from m2m_tf.layers.task_views import TaskViews

__all__ = [
    "ColumnEmbedding",
    "CrossStitch",
    "DenseUnit",
    "ExpertViews",
    "GatedExperts",
    "HistoryOffset",
    "HurdleHeads",
    "LogRateHeads",
    "MeanForecast",
    "MetaAttention",
    "MetaDense",
    "MetaResidualTower",
    "MetaUnit",
    "ScenarioKnowledge",
    "SequenceEncoder",
    "TaskDense",
    "TaskMetaUnit",
    "TaskRelationAttention",
    "TaskViews",
]

"""Small tables in the data contract, outside advertising, and settings."""

from make_clinics import write_clinic_tables as write_clinic_tables

from m2m_tf.config import ModelSettings, TrainingSettings

SMALL_MODEL = ModelSettings(
    embedding_dim=2,
    pooling="mean",
    num_experts=2,
    view_dim=8,
    knowledge_dim=4,
    num_meta_layers=1,
    num_tower_layers=1,
    history_offset=True,
    dropout=0.1,
    likelihood="hurdle",
)
# Without XLA: compiling takes longer than these few steps.
SMALL_TRAINING = TrainingSettings(batch_size=32, epochs=2, jit_compile=False)

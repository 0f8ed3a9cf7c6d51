"""Preprocessing: fitted on training days, the same object in serving."""

from m2m_tf.features.preprocessing import (
    Preprocessor as Preprocessor,
    Statistics as Statistics,
    fit_preprocessor as fit_preprocessor,
)

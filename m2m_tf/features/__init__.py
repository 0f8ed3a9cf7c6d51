"""Preprocessing: fitted on training days, the same object in serving."""

from m2m_tf.features.preprocessing import Preprocessor as Preprocessor
from m2m_tf.features.preprocessing import Statistics as Statistics
from m2m_tf.features.preprocessing import fit_preprocessor as fit_preprocessor

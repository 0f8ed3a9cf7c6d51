"""What M2M is compared with beside the paper's networks."""

from m2m_tf.baselines.naive import naive_forecasts

__all__ = ["naive_forecasts"]

"""M2M: multi-scenario multi-task forecasts of every advertiser."""

__version__ = "0.1.0"

import polars as pl
import pytest


@pytest.fixture(scope="session")
def source(clinic_spec):
    """The panel of the clinics; frames cannot be changed in place."""
    return pl.read_parquet(clinic_spec.panel)

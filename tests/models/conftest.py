import pytest


@pytest.fixture(scope="module")
def batch(clinic_data):
    return next(iter(clinic_data.validation(16)))

"""Small clinic tables and what is made of them, once per session."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest
from tables import SMALL_MODEL, SMALL_TRAINING, write_clinic_tables

from m2m_tf.config import DatasetSpec


@pytest.fixture(scope="session")
def clinic_spec(tmp_path_factory):
    """Spec of valid clinic tables; tests must not change the files."""
    folder = tmp_path_factory.mktemp("clinics")
    return DatasetSpec.load(write_clinic_tables(folder))


@pytest.fixture(scope="session")
def clinic_records(tmp_path_factory):
    """Folder of the clinics' records, once `clinic_data` has been asked for."""
    return tmp_path_factory.mktemp("records")


@pytest.fixture(scope="session")
def clinic_data(clinic_spec, clinic_records):
    """The clinic tables as prepared data."""
    from m2m_tf.data.dataset import ForecastData

    return ForecastData.prepare(clinic_spec, clinic_records)


@pytest.fixture(scope="session")
def all_days(clinic_spec, tmp_path_factory):
    """The clinic tables as prepared data with nothing held out."""
    from m2m_tf.data.dataset import ForecastData

    folder = tmp_path_factory.mktemp("records_of_all_days")
    return ForecastData.prepare(clinic_spec, folder, holdout=False)


@pytest.fixture(scope="session")
def trained(clinic_data, tmp_path_factory):
    """Folder with a model trained for two epochs, and its history."""
    from m2m_tf import training

    folder = tmp_path_factory.mktemp("training")
    history = training.train(clinic_data, SMALL_MODEL, SMALL_TRAINING, folder)
    return folder, history


@pytest.fixture(scope="session")
def exported(clinic_data, trained, tmp_path_factory):
    """Folder of the exported versions of the trained model."""
    from m2m_tf import training
    from m2m_tf.export import export_model

    folder = tmp_path_factory.mktemp("exported")
    export_model(
        training.load_model(trained[0]), clinic_data.preprocessor, folder
    )
    return folder

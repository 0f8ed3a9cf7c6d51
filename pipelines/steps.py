"""Thin steps: a workspace in, artifacts out. The work is done in m2m_tf."""

import dataclasses
import tempfile

from m2m_tf import evaluation_run, export as exporting, files, training
from m2m_tf.config import to_values
from m2m_tf.data import panel, tfds_builder, validation
from m2m_tf.data.dataset import ForecastData
from m2m_tf.models import build_model
from m2m_tf.serving import batch_scoring, pushing

TRAINING_FOLDER = "training"
REFIT_FOLDER = "refit"
FORECASTS_FILE = "forecasts.parquet"


def check_extras(config) -> None:
    """Raises ImportError now for a package that a later step would miss."""
    if config.evaluation.lightgbm:
        from m2m_tf.baselines import lightgbm

        lightgbm.import_lightgbm()


def make_tables(work) -> None:
    """Makes the tables of a built-in source."""
    write_source_tables(work.config.data, work.folder / "tables")


def write_source_tables(source, folder) -> None:
    """Writes a source's tables to a folder, whole or not at all."""
    from m2m_tf.data.sources import complete_journey, simulator

    options = {
        field.name: getattr(source, field.name)
        for field in dataclasses.fields(source)
    }
    makers = {
        "complete_journey": complete_journey.write_tables,
        "simulator": simulator.write_tables,
    }
    with files.replacing(folder) as temporary:
        makers[options.pop("name")](temporary, **options)


def check_tables(work) -> None:
    """Validates the tables, and tells what they hold."""
    print(validation.validate_tables(work.spec))


def make_records(work) -> None:
    """Writes series records, fits the preprocessor."""
    ForecastData.prepare(work.spec, work.folder / "records")
    if work.config.refit:
        # Until the refit the tables may have changed.
        _prepare_all_days(work)


def records_settings(work) -> object:
    """What records depend on: the tables, and how records are written."""
    version = str(tfds_builder.PanelSeries.VERSION)
    return [panel.table_fingerprints(work.spec), version]


def check_model(work) -> None:
    """Builds the model, since settings may not fit each other or the data."""
    preprocessor = _data(work).preprocessor
    build_model(
        preprocessor.model_inputs,
        work.config.model,
        preprocessor.statistics.label_means,
    )


def train(work) -> None:
    """Trains the model; goes on where an interrupted run has stopped."""
    training.train(
        _data(work),
        work.config.model,
        work.config.training,
        work.folder / TRAINING_FOLDER,
    )


def evaluate(work) -> None:
    """Scores the test split once, beside naive forecasts and LightGBM."""
    folder = work.folder / TRAINING_FOLDER
    evaluation_run.evaluate_run(
        _data(work),
        training.load_model(folder),
        files.read_json(folder / training.HISTORY_FILE),
        work.folder,
        config=to_values(work.config),
        with_lightgbm=work.config.evaluation.lightgbm,
    )


def refit(work) -> None:
    """Trains the evaluated model anew on all days."""
    training.refit(
        _data(work, holdout=False),
        work.config.model,
        work.config.training,
        work.folder / TRAINING_FOLDER,
        work.folder / REFIT_FOLDER,
    )


def export(work) -> None:
    """Writes the servable model into the run's folder."""
    if not work.config.refit:
        version = _export(work, TRAINING_FOLDER, work.exported)
    else:
        with tempfile.TemporaryDirectory() as folder:
            evaluated = _export(work, TRAINING_FOLDER, folder)
            version = _export(work, REFIT_FOLDER, work.exported, evaluated)
    print(f"exported to {version}")


def predict(work) -> None:
    """Forecasts the days after the last one, with the exported model."""
    spec = work.spec
    summary = batch_scoring.score_tables(
        work.exported, spec, spec.end, work.folder / FORECASTS_FILE
    )
    print(f"{summary} from {spec.end}")


def push(work) -> None:
    """Publishes the exported model as the next served version."""
    push_to(work, work.served)


def push_to(work, folder) -> None:
    """Publishes the exported model in any folder."""
    version = pushing.push(work.exported, _data(work), folder, work.config.push)
    print(f"serving from {version}")


def _prepare_all_days(work):
    return ForecastData.prepare(
        work.spec, work.folder / "records", holdout=False
    )


def _data(work, holdout=True):
    try:
        return ForecastData.load(work.spec, work.folder / "records", holdout)
    except FileNotFoundError:
        # The records are of a run without a refit.
        if holdout:
            raise
        return _prepare_all_days(work)


def _export(work, trained, folder, evaluated=None):
    """Exports what lies in the run's folder `trained`."""
    return exporting.export_model(
        training.load_model(work.folder / trained),
        _data(work, holdout=trained == TRAINING_FOLDER).preprocessor,
        folder,
        card={
            "metrics": files.read_json(
                work.folder / evaluation_run.METRICS_FILE
            ),
            "settings": {
                "model": to_values(work.config.model),
                "training": to_values(work.config.training),
            },
        },
        evaluated=evaluated,
    )

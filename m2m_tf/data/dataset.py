"""One object from tables to batches, for notebooks and pipeline alike."""

import dataclasses
import json
import os
import pathlib

import tensorflow as tf

from m2m_tf import files
from m2m_tf.config import DatasetSpec, TrainingSettings
from m2m_tf.data import input_pipeline, tfds_builder, validation, windows
from m2m_tf.features import Preprocessor, fit_preprocessor

_PREPROCESSOR_FILE = "preprocessor.json"
_PREPROCESSOR_OF_ALL_FILE = "preprocessor_of_all_days.json"


@dataclasses.dataclass(frozen=True)
class ForecastData:
    """A dataset that is ready to train on.

    Args:
        spec: The dataset spec.
        records: Dataset of series records.
        preprocessor: Fitted on the training days.
        splits: Cutoffs of each split.
        fingerprint: `panel.table_fingerprints` of the tables when the records
            were made from them.

    Example:

    >>> data = ForecastData.prepare(DatasetSpec.load("spec.yaml"), "records")
    >>> inputs, labels = next(iter(data.train(batch_size=16)))
    >>> labels["visits"].shape
    TensorShape([16, 1])
    """

    spec: DatasetSpec
    records: tf.data.Dataset
    preprocessor: Preprocessor
    splits: windows.Splits
    fingerprint: dict[str, str]

    @classmethod
    def prepare(
        cls,
        spec: DatasetSpec,
        folder: str | os.PathLike,
        holdout: bool = True,
        later_rows: bool = False,
    ) -> "ForecastData":
        """Validates the tables, writes records and fits the preprocessor.

        What lies in `folder` for this spec is used as it is, unless the tables
        have changed. Other tables of the same spec need a folder of their own.

        Args:
            spec: The dataset spec.
            folder: Folder of the records.
            holdout: Whether days are held out to validate and to test. Without
                them every day is there to train on, see `training.refit`.
            later_rows: Whether the panel may have rows after `spec.end`, which
                are then passed over, see `DatasetSpec.until`.

        Raises:
            DataValidationError: If the tables break the data contract.
            SplitError: If a split would be empty.
            TypeError: If `spec` is no `DatasetSpec`.
        """
        if not isinstance(spec, DatasetSpec):
            raise TypeError(
                "`spec` must be a DatasetSpec; `DatasetSpec.load` reads one "
                f"from YAML. Received: {spec!r}."
            )
        folder = pathlib.Path(folder)
        summary = validation.validate_tables(spec, later_rows)
        builder = tfds_builder.prepare_records(spec, folder, summary.entities)
        records = tfds_builder.read_records(builder)
        path = _preprocessor_path(builder, holdout)
        if not path.exists():
            preprocessor = fit_preprocessor(
                spec, records, _make_splits(spec, holdout)
            )
            files.write_text(path, json.dumps(preprocessor.get_config()))
        return cls.load(spec, folder, holdout)

    @classmethod
    def load(
        cls, spec: DatasetSpec, folder: str | os.PathLike, holdout: bool = True
    ) -> "ForecastData":
        """Opens what `prepare` has written for this spec.

        Raises:
            FileNotFoundError: If there is nothing of the kind.
        """
        builder = tfds_builder.PanelSeries(spec=spec, data_dir=folder)
        path = _preprocessor_path(builder, holdout)
        if not path.exists():
            raise FileNotFoundError(
                f"{folder}: holds no records of this spec. Make them with "
                "`m2m-tf run`, or `ForecastData.prepare`."
            )
        config = files.read_json(path)
        return cls(
            spec,
            tfds_builder.read_records(builder),
            Preprocessor.from_config(config),
            _make_splits(spec, holdout),
            tfds_builder.tables_of(builder),
        )

    def num_samples(self, split: str) -> int:
        """Samples of a split."""
        return self.preprocessor.statistics.num_samples[split]

    def train(
        self,
        batch_size: int,
        shuffle_entities: int = TrainingSettings.shuffle_entities,
        seed: int = 0,
        epoch: tf.Variable | None = None,
    ) -> tf.data.Dataset:
        """Shuffled training batches, see `input_pipeline.training_batches`."""
        count = self.num_samples("train")
        # A set smaller than one batch still trains, in one step an epoch.
        batch_size = min(batch_size, count)
        batches = input_pipeline.training_batches(
            self.records,
            self.spec,
            self.preprocessor,
            self.splits.train,
            batch_size,
            shuffle_entities,
            seed,
            epoch,
        )
        return batches.apply(
            tf.data.experimental.assert_cardinality(count // batch_size)
        )

    def validation(self, batch_size: int) -> tf.data.Dataset:
        """Every validation sample, in order; none if nothing is held out."""
        return self._in_order("validation", batch_size)

    def test(self, batch_size: int) -> tf.data.Dataset:
        """Every test sample, in order; none if nothing is held out."""
        return self._in_order("test", batch_size)

    def raw(self, split: str, batch_size: int) -> tf.data.Dataset:
        """Every sample of a split as raw features, entity and labels.

        Raises:
            ValueError: If `split` is not one of `windows.SPLIT_NAMES`.
        """
        if split not in windows.SPLIT_NAMES:
            raise ValueError(
                f"`split` must be one of {windows.SPLIT_NAMES}. Received: "
                f"{split!r}."
            )
        return input_pipeline.raw_batches(
            self.records, self.spec, getattr(self.splits, split), batch_size
        )

    def _in_order(self, split, batch_size):
        batches = input_pipeline.evaluation_batches(
            self.records,
            self.spec,
            self.preprocessor,
            getattr(self.splits, split),
            batch_size,
        )
        steps = -(-self.num_samples(split) // batch_size)
        return batches.apply(tf.data.experimental.assert_cardinality(steps))


def _make_splits(spec, holdout):
    if holdout:
        return windows.make_splits(spec)
    return windows.hold_nothing_out(spec)


def _preprocessor_path(builder, holdout):
    name = _PREPROCESSOR_FILE if holdout else _PREPROCESSOR_OF_ALL_FILE
    return pathlib.Path(builder.data_dir) / name

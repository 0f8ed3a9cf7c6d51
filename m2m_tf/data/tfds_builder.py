"""Versioned tensorflow-datasets builder of series records.

One example is one entity's whole history, so a day is stored once instead of
`lookback` times and one file set serves every split: windows are cut when the
records are read (`input_pipeline`).
"""

import contextlib
import io
import os
import pathlib
import shutil

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tqdm import tqdm

from m2m_tf import files
from m2m_tf.config import DatasetSpec, fingerprint
from m2m_tf.data import panel, schema

SPLIT = "series"
_TABLES_FILE = "tables.json"
_LOCK_FILE = ".lock"
# How tfds begins the name of a folder that it is writing.
_UNFINISHED = "incomplete.*"


class _LocalInfo(tfds.core.DatasetInfo):
    """Metadata that nobody but this machine has."""

    def initialize_from_bucket(self):
        """Looks for none elsewhere; tfds' own leaves an empty folder behind."""


class PanelSeries(tfds.core.GeneratorBasedBuilder):
    """Builder whose examples are the records of one dataset spec.

    Args:
        spec: The dataset spec; its tables must have been validated.
        data_dir: Folder that the TFRecord files are written to.
        entities: Number of entities, for the progress bar.

    Example:

    >>> spec = DatasetSpec.load("spec.yaml")
    >>> builder = PanelSeries(spec=spec, data_dir="records")
    >>> builder.download_and_prepare()
    Downloading and preparing dataset ...
    >>> records = builder.as_dataset(split="series")
    """

    VERSION = tfds.core.Version("1.6.0")
    RELEASE_NOTES = {
        "1.0.0": "Series records cut into windows when read.",
        "1.1.0": "The preprocessor beside them knows scenarios' attributes.",
        "1.2.0": "The preprocessor knows the last day that it was fitted on.",
        "1.3.0": "Without `activity`, series count from their first value on.",
        "1.4.0": "What is fitted has the most that a label can be.",
        "1.5.0": "What is fitted knows the first and last training cutoff.",
        "1.6.0": "What is fitted has √n buckets of n values.",
    }

    def __init__(
        self,
        *,
        spec: DatasetSpec,
        data_dir: str | os.PathLike,
        entities: int | None = None,
        **kwargs,
    ):
        self.spec = spec
        self._entities = entities
        config = tfds.core.BuilderConfig(
            # Records of another spec must never be taken for this one's.
            name=f"{spec.name}-{fingerprint(spec.identity)[:8]}",
            version=self.VERSION,
            description=spec.description,
        )
        kwargs.setdefault("file_format", "tfrecord")
        with _quiet():
            super().__init__(data_dir=data_dir, config=config, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            name: _feature(tensor)
            for name, tensor in schema.record_tensors(self.spec).items()
        }
        return _LocalInfo(
            builder=self,
            description=self.spec.description or self.spec.name,
            features=tfds.features.FeaturesDict(features),
            # The paths of the tables stay out of the data set's metadata.
            homepage=None,
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # Nothing is downloaded.
        return {SPLIT: self._generate_examples()}

    def _generate_examples(self):
        records = tqdm(
            panel.iter_records(self.spec, scratch=self.data_dir_root),
            total=self._entities,
            desc="records",
            unit=" entities",
            mininterval=2,
        )
        for record in records:
            yield record[schema.ENTITY], record


def prepare_records(
    spec: DatasetSpec, data_dir: str | os.PathLike, entities: int | None = None
) -> PanelSeries:
    """Writes the records unless those of the tables are there.

    Returns:
        The builder.

    Raises:
        RuntimeError: If another process is writing them.

    Example:

    >>> spec = DatasetSpec.load("spec.yaml")
    >>> builder = prepare_records(spec, "records", entities=12)
    >>> builder.info.splits["series"].num_examples
    12
    """
    builder = PanelSeries(spec=spec, data_dir=data_dir, entities=entities)
    written = pathlib.Path(builder.data_path)
    path = written / _TABLES_FILE
    tables = panel.table_fingerprints(spec)
    if path.exists() and files.read_json(path) == tables:
        return builder
    busy = (
        f"{written.parent}: another process is writing these records. Wait "
        "until it has ended."
    )
    with files.only_one(written.parent / _LOCK_FILE, busy):
        # What processes that were killed have left.
        for folder in written.parent.glob(_UNFINISHED):
            shutil.rmtree(folder)
        if written.exists():
            files.remove_folder(written)
        # The first one knows what was there.
        builder = PanelSeries(spec=spec, data_dir=data_dir, entities=entities)
        with _quiet():
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(
                    try_download_gcs=False
                )
            )
        files.write_json(path, tables)
    return builder


def tables_of(builder: PanelSeries) -> dict[str, str]:
    """`panel.table_fingerprints` of the tables when the records were made.

    Example:

    >>> spec = DatasetSpec.load("spec.yaml")
    >>> builder = prepare_records(spec, "records", entities=12)
    >>> list(tables_of(builder))
    ['spec', 'panel', 'profile', 'scenarios']
    """
    return files.read_json(pathlib.Path(builder.data_path) / _TABLES_FILE)


def read_records(builder: PanelSeries):
    """The records as a `tf.data.Dataset`, in a fixed order.

    Example:

    >>> builder = prepare_records(DatasetSpec.load("spec.yaml"), "records")
    >>> read_records(builder).element_spec["values"].shape
    TensorShape([None, 120, 6])
    """
    with _quiet():
        return builder.as_dataset(
            split=SPLIT,
            shuffle_files=False,
            read_config=tfds.ReadConfig(
                try_autocache=False, interleave_cycle_length=1
            ),
        )


@contextlib.contextmanager
def _quiet():
    """Without what tensorflow-datasets tells of itself.

    It prints that it downloads, which nothing here does, warns of a config
    of its caller's own and of its own deprecated attribute, and has bars
    beside ours, which shows rate and time left.
    """
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(before)


def _feature(tensor):
    dtype = np.str_ if tensor.dtype == "string" else np.dtype(tensor.dtype)
    # Histories are sparse: zlib makes the zeros nearly free on disk.
    encoding = "zlib" if len(tensor.shape) > 1 else "none"
    return tfds.features.Tensor(
        shape=tensor.shape, dtype=dtype, encoding=encoding
    )

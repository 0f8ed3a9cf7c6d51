"""Forecasts for every entity in every scenario, from tables.

Needs the SavedModel and TensorFlow, but no layer of this library.
"""

import dataclasses
import datetime
import json
import os
import pathlib

import numpy as np
import polars as pl
import tensorflow as tf
from tqdm import tqdm

from m2m_tf import files
from m2m_tf.config import DatasetSpec
from m2m_tf.data import input_pipeline, panel, schema
from m2m_tf.export import CONTRACT_FILE, make_contract
from m2m_tf.signatures import PREDICT, output_name

_BATCH = 1024
# Forecast rows held before they are written.
_PART_ROWS = 500_000


class ContractError(ValueError):
    """A model and a dataset spec that do not fit together."""


@dataclasses.dataclass(frozen=True)
class ScoringSummary:
    """What `score_tables` has written.

    Args:
        forecasts: Number of forecast rows.
        unknown: Categorical input → number of forecasts whose value the model
            has not seen in training. They are forecast as unknown ones.
    """

    forecasts: int
    unknown: dict[str, int]

    def __str__(self):
        text = f"{self.forecasts:,} forecasts"
        if self.unknown:
            parts = [f"{name} in {n:,}" for name, n in self.unknown.items()]
            text += f" (value not seen in training: {', '.join(parts)})"
        return text


def versions_of(folder: str | os.PathLike) -> list[pathlib.Path]:
    """Folders of a model's versions, oldest first."""
    versions = [p for p in pathlib.Path(folder).glob("*") if p.name.isdigit()]
    return sorted(versions, key=lambda path: int(path.name))


def latest_version(model: str | os.PathLike) -> pathlib.Path:
    """`model` itself if it is a version, else its highest version.

    Raises:
        FileNotFoundError: If there is no SavedModel.
    """
    model = pathlib.Path(model)
    if (model / "saved_model.pb").exists():
        return model
    versions = versions_of(model)
    if not versions:
        raise FileNotFoundError(
            f"{model}: holds no SavedModel. Give the folder that "
            "`m2m-tf export` has written."
        )
    return versions[-1]


def score_tables(
    model: str | os.PathLike,
    spec: DatasetSpec,
    cutoff: datetime.date,
    output: str | os.PathLike,
    chunk_rows: int = 2_000_000,
) -> ScoringSummary:
    """Scores every (entity, scenario) of the tables at one cutoff.

    Entities, scenarios and categories that the model has never seen are
    served by its out-of-vocabulary rows. Memory is bounded by `chunk_rows`.

    Args:
        model: Folder of a SavedModel or of its versions.
        spec: Spec of the tables. They may have grown past its `end`.
        cutoff: Last day seen; any day that the tables cover.
        output: Parquet file to write: entity, scenario, cutoff and, for each
            task, the mean forecast of the next days; median and bounds of
            the 80 % interval too, if the model gives them.
        chunk_rows: Panel rows held at a time, about.

    Returns:
        What was written, and what in it the model has never seen.

    Raises:
        ContractError: If the spec's columns are not the model's.
        DataValidationError: If the tables break the data contract.
        FileNotFoundError: If there is no SavedModel.
    """
    version = latest_version(model)
    vocabularies = _check_contract(version, spec)
    if cutoff < spec.start:
        raise ContractError(
            f"The cutoff must not lie before {spec.start}, the first day of "
            f"the spec. Received: {cutoff}."
        )
    first = max(spec.start, cutoff - datetime.timedelta(days=spec.lookback - 1))
    covered = spec.end
    # Nothing later than the cutoff is read at all.
    spec = dataclasses.replace(spec, start=first, end=cutoff)
    panel.validate_for_scoring(spec)
    if cutoff > covered:
        # A panel is sparse: days not yet written would pass for days of zeros.
        covered = panel.last_day(spec)
        if covered is None or cutoff > covered:
            raise ContractError(
                f"{spec.panel}: the last day is {covered}. Received: cutoff "
                f"{cutoff}. Add the days in between, or forecast from "
                f"{covered}."
            )
    predict = tf.saved_model.load(str(version)).signatures[PREDICT]
    batches = input_pipeline.raw_batches(
        _record_dataset(spec, chunk_rows),
        spec,
        [spec.num_days - 1],
        _BATCH,
        keep_all=True,
    )
    with files.replacing(output) as temporary:
        parts = temporary.with_name(temporary.name + ".parts")
        try:
            return _write(
                spec, cutoff, predict, batches, vocabularies, parts, temporary
            )
        finally:
            for path in parts.glob("*.parquet"):
                path.unlink()
            if parts.exists():
                parts.rmdir()


def _write(spec, cutoff, predict, batches, vocabularies, parts, target):
    parts.mkdir()
    unknown = dict.fromkeys(vocabularies, 0)
    names = list(schema.raw_features(spec))
    outputs = _in_task_order(predict.structured_outputs, spec.task_names)
    held, num_rows, num_parts = [], 0, 0
    for rows in tqdm(batches, desc="scoring", unit=" batches", mininterval=2):
        forecasts = predict(**{name: rows[name] for name in names})
        held.append(
            pl.DataFrame(
                {
                    spec.entity: _text(rows[schema.ENTITY]),
                    spec.scenario: _text(rows[schema.SCENARIO]),
                    "cutoff": pl.Series([cutoff]).new_from_index(
                        0, len(rows[schema.ENTITY])
                    ),
                    **{name: forecasts[name].numpy()[:, 0] for name in outputs},
                }
            )
        )
        for name, known in vocabularies.items():
            unknown[name] += int(
                np.isin(_text(rows[name]), known, invert=True).sum()
            )
        num_rows += len(held[-1])
        if sum(map(len, held)) >= _PART_ROWS:
            pl.concat(held).write_parquet(parts / f"{num_parts:06d}.parquet")
            held, num_parts = [], num_parts + 1
    if held:
        pl.concat(held).write_parquet(parts / f"{num_parts:06d}.parquet")
    pl.scan_parquet(parts / "*.parquet").sink_parquet(target)
    return ScoringSummary(num_rows, {k: n for k, n in unknown.items() if n})


def _in_task_order(outputs, task_names):
    """Output names: each task's mean, then its median and interval."""
    return [
        name
        for task in task_names
        for part in ("mean", "median", "lower", "upper")
        if (name := output_name(task, part)) in outputs
    ]


def _text(tensor):
    return [value.decode() for value in np.asarray(tensor)]


def _record_dataset(spec, chunk_rows):
    signature = {
        name: tf.TensorSpec(tensor.shape, tensor.dtype)
        for name, tensor in schema.record_tensors(spec).items()
    }
    return tf.data.Dataset.from_generator(
        lambda: panel.iter_records(
            spec, every_scenario=True, chunk_rows=chunk_rows
        ),
        output_signature=signature,
    )


def _check_contract(version, spec):
    """Returns the vocabularies of a model that fits the spec."""
    path = version / CONTRACT_FILE
    if not path.exists():
        raise ContractError(
            f"{version}: has no {CONTRACT_FILE}. Export the model again with "
            "`m2m-tf export`."
        )
    theirs = json.loads(path.read_text(encoding="utf-8"))
    ours = json.loads(json.dumps(make_contract(spec)))
    differing = [key for key in ours if ours[key] != theirs.get(key)]
    if differing:
        key = differing[0]
        raise ContractError(
            f"The spec does not fit the model in {differing}: {key} must be "
            f"{theirs.get(key)}. Received: {ours[key]}."
        )
    return theirs["vocabularies"]

"""Versions of one model, loaded, warmed up, and followed as they change."""

import dataclasses
import gc
import logging
import math
import os
import pathlib
import re
import threading
import time
from collections.abc import Mapping

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import get_model_status_pb2, prediction_log_pb2

from m2m_tf import files
from m2m_tf.export import CONTRACT_FILE, WARMUP_FILE
from m2m_tf.versions import versions_of

log = logging.getLogger(__name__)
State = get_model_status_pb2.ModelVersionStatus.State
# Rows of one request; what is more belongs to batch scoring.
MAX_ROWS = 4096
# Letters of an error's text.
_MOST_TOLD = 1000
# How lines begin that tell where in the graph an error was.
_PLACES = ("Graph execution error", "Detected", "<stack traces unavailable>")
# Newest versions that answer, as deploy/models.config has it.
NUM_VERSIONS = 2
_SECONDS_BETWEEN_LOOKS = 1.0
# Seconds until a version that could not be loaded is tried again: it may still
# be copied. The time doubles with each try.
_FIRST_RETRY, _LAST_RETRY = 1.0, 60.0


class InvalidRequest(ValueError):
    """A request that cannot be answered because of what it asks."""


class UnknownSignature(InvalidRequest):
    """A request of a signature that the model has not."""


class NotFound(LookupError):
    """A model or version that is not there."""


def shown(error: Exception) -> str:
    """What a caller is told; it may quote values of any length.

    Example:

    >>> len(shown(InvalidRequest("a" * 10_000)))
    1003
    """
    text = str(error)
    return text if len(text) <= _MOST_TOLD else text[:_MOST_TOLD] + "..."


class LoadedModel:
    """One version: its signatures, and what each takes.

    Args:
        folder: Folder of the version, its name the version's number.
        max_rows: Most rows of one request.
    """

    def __init__(self, folder: pathlib.Path, max_rows: int = MAX_ROWS):
        self.version = int(folder.name)
        self._max_rows = max_rows
        self._model = tf.saved_model.load(str(folder))
        self._signatures = dict(self._model.signatures)
        # Taken once: each look at them costs a request time.
        self._inputs = {
            name: dict(function.structured_input_signature[1])
            for name, function in self._signatures.items()
        }
        # Without it the folder is still being copied.
        contract = files.read_json(folder / CONTRACT_FILE)
        self.methods = {
            name: signature["method"]
            for name, signature in contract["signatures"].items()
        }
        # Inputs in which NaN stands for a value that is not known.
        self._may_be_missing = {
            name
            for name, tensor in contract["inputs"].items()
            if "default" in tensor and tensor["default"] is None
        }
        self._warm_up(folder / WARMUP_FILE)

    @property
    def signature_names(self) -> list[str]:
        """Names of the signatures."""
        return sorted(self._signatures)

    def inputs(self, signature: str) -> dict[str, tf.TensorSpec]:
        """Name → spec of each input of a signature."""
        self._signature(signature)
        return self._inputs[signature]

    def outputs(self, signature: str) -> dict[str, tf.TensorSpec]:
        """Name → spec of each output of a signature."""
        return dict(self._signature(signature).structured_outputs)

    def run(
        self, signature: str, inputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Answers a request.

        Args:
            signature: Name of the signature.
            inputs: Name → array with the dtype and shape of its spec.

        Returns:
            Name → array of each output.

        Raises:
            InvalidRequest: If the inputs do not fit; the field is named.
            UnknownSignature: If there is no such signature.
        """
        specs = self.inputs(signature)
        missing, extra = (
            sorted(set(specs) - set(inputs)),
            sorted(set(inputs) - set(specs)),
        )
        if missing or extra:
            raise InvalidRequest(
                f"Signature {signature!r} takes {sorted(specs)}."
                + (f" Missing: {missing}." if missing else "")
                + (f" Not known: {extra}." if extra else "")
            )
        for name, values in inputs.items():
            self.check_shape(signature, name, values.shape)
            self._check_values(name, values)
        rows = {name: len(values) for name, values in inputs.items()}
        if len(set(rows.values())) > 1:
            raise InvalidRequest(
                f"All inputs must have as many rows. Received: {rows}."
            )
        try:
            told = self._signatures[signature](
                **{
                    name: tf.constant(values, specs[name].dtype)
                    for name, values in inputs.items()
                }
            )
        except tf.errors.InvalidArgumentError as error:
            raise InvalidRequest(_first_cause(error)) from error
        except UnicodeDecodeError as error:
            # TensorFlow's message quotes the bytes that it cannot parse.
            raise InvalidRequest(
                f"{sorted(inputs)}: holds bytes that are no tf.Example."
            ) from error
        outputs = {name: values.numpy() for name, values in told.items()}
        for name, values in outputs.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise InvalidRequest(
                    f"{name} would not be finite: an input holds NaN, "
                    "infinity or a value too large."
                )
        return outputs

    def check_shape(self, signature: str, name: str, shape) -> None:
        """Refuses an input of the wrong shape, or of too many rows.

        Raises:
            InvalidRequest: If the shape does not fit the input's spec.
        """
        spec = self._inputs[signature][name]
        shape = tuple(shape)
        if len(shape) != len(spec.shape) or any(
            size is not None and size != given
            for size, given in zip(spec.shape, shape, strict=True)
        ):
            expected = ["rows", *spec.shape[1:]]
            raise InvalidRequest(
                f"{name!r} must have shape {expected}. Received: {list(shape)}."
            )
        if not shape[0]:
            raise InvalidRequest(f"{name!r} has no row.")
        if shape[0] > self._max_rows:
            raise InvalidRequest(
                f"A request may have {self._max_rows} rows. Received: "
                f"{shape[0]}. Score more of them with `m2m-tf predict`."
            )

    def _signature(self, name):
        if name not in self._signatures:
            raise UnknownSignature(
                f"Signature {name!r} is not one of {self.signature_names}."
            )
        return self._signatures[name]

    def _check_values(self, name, values):
        if values.dtype.kind != "f":
            return
        bad = np.isinf(values)
        if name not in self._may_be_missing:
            bad |= np.isnan(values)
        if bad.any():
            raise InvalidRequest(
                f"{name!r} must be finite. Received: {bad.sum()} other "
                f"value(s), the first in row {np.argwhere(bad)[0][0]}."
            )

    def _warm_up(self, path):
        """Replays the exporter's requests, so that no caller waits for it."""
        if not path.exists():
            return
        for record in tf.data.TFRecordDataset(str(path)):
            entry = prediction_log_pb2.PredictionLog.FromString(record.numpy())
            if entry.WhichOneof("log_type") == "predict_log":
                request = entry.predict_log.request
                self.run(
                    request.model_spec.signature_name,
                    {
                        name: tf.make_ndarray(tensor)
                        for name, tensor in request.inputs.items()
                    },
                )


def _first_cause(error):
    """What TensorFlow says is wrong, without where in the graph it was."""
    lines = [line.strip() for line in str(error).split("\n")]
    told = [line for line in lines if line and not line.startswith(_PLACES)]
    for line in told:
        # The parser of tf.Examples says which feature.
        if found := re.search("(Feature|Key): .*", line):
            return found[0]
    return told[0] if told else "The inputs do not fit."


@dataclasses.dataclass(frozen=True)
class VersionStatus:
    """State of a version, and why it could not be loaded.

    Args:
        state: One of TF Serving's.
        error: Why it could not be loaded.
        tries: How often that was tried.
        next_try: When it is tried again, in seconds of the monotonic clock.
    """

    state: int
    error: str = ""
    tries: int = 0
    next_try: float = math.inf


class ModelStore:
    """The newest versions in a folder, kept as the folder changes.

    A version answers as soon as it is loaded and warmed up; until then, and
    if it cannot be loaded, the ones before do. One that cannot be loaded is
    tried again. A version that is gone from the folder, or no longer among the
    newest, is dropped once its last request has been answered: whoever has got
    it holds it. While the folder itself is gone, nothing is dropped.

    Args:
        name: Name that the model is asked by.
        folder: Folder of its versions.
        max_rows: Most rows of one request.
    """

    def __init__(self, name, folder, max_rows=MAX_ROWS):
        self.name = name
        self.folder = pathlib.Path(folder)
        self._max_rows = max_rows
        self._loaded: dict[int, LoadedModel] = {}
        self._status: dict[int, VersionStatus] = {}
        self._stopped = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    @property
    def started(self) -> bool:
        """Whether the folder is being followed."""
        return self._watcher.is_alive()

    def start(self) -> None:
        """Loads what is there, then follows the folder in a thread."""
        self.refresh()
        self._watcher.start()

    def stop(self, seconds: float | None = None) -> None:
        """Ends the thread, or leaves it to the process's end after seconds."""
        self._stopped.set()
        self._watcher.join(seconds)

    def get(self, version: int | None = None) -> LoadedModel:
        """A version that answers, the newest by default.

        Raises:
            NotFound: If it is not there.
        """
        loaded = self._loaded
        if version is None and loaded:
            version = max(loaded)
        if version not in loaded:
            raise NotFound(
                f"Model {self.name!r} has no version "
                f"{'yet' if version is None else version}. "
                f"Loaded: {sorted(loaded)}."
            )
        return loaded[version]

    def status(self) -> dict[int, VersionStatus]:
        """Version → status, newest first."""
        return dict(sorted(self._status.items(), reverse=True))

    def refresh(self) -> None:
        """Loads new versions, newest first, and drops those that are gone.

        Raises:
            OSError: If the folder cannot be read.
        """
        versions = {int(path.name): path for path in versions_of(self.folder)}
        if not versions:
            os.listdir(self.folder)  # Empty, or not there for a while?
        before = self._loaded
        kept = set()
        for version in sorted(versions, reverse=True):
            # An older one answers as long as none of the newest can.
            if len(kept) >= NUM_VERSIONS and kept & self._loaded.keys():
                break
            if self._stopped.is_set():
                return
            kept.add(version)
            status = self._status.get(version, VersionStatus(State.START))
            if status.state == State.START or (
                time.monotonic() >= status.next_try
            ):
                self._load(version, versions[version], status.tries)
        for version in set(self._status) - kept:
            log.info("%s: dropping version %d", self.name, version)
            # Replaced, not changed: requests read it without a lock.
            self._loaded = {
                k: x for k, x in self._loaded.items() if k != version
            }
            del self._status[version]
        if self._loaded is not before:
            # TensorFlow keeps hundreds of thousands of objects. The collector
            # would walk them all in the midst of a large request, for 0.3 s.
            gc.unfreeze()
            gc.collect()
            gc.freeze()

    def _load(self, version, path, tries):
        self._status[version] = VersionStatus(State.LOADING)
        log.info("%s: loading version %d", self.name, version)
        try:
            model = LoadedModel(path, self._max_rows)
        # Whatever is wrong with a version, the ones before must go on.
        except Exception as error:
            message = f"{type(error).__name__}: {error}".split("\n")[0]
            wait = min(_FIRST_RETRY * 2 ** min(tries, 10), _LAST_RETRY)
            log.log(
                # Once is enough to be told where.
                logging.WARNING if tries else logging.ERROR,
                "%s: version %d is broken, to be tried again in %g s: %s",
                self.name,
                version,
                wait,
                message,
                exc_info=not tries,
            )
            self._status[version] = VersionStatus(
                State.END, message, tries + 1, time.monotonic() + wait
            )
            return
        self._loaded = self._loaded | {version: model}
        self._status[version] = VersionStatus(State.AVAILABLE)
        log.info("%s: version %d is served", self.name, version)

    def _watch(self):
        told = None
        while not self._stopped.wait(_SECONDS_BETWEEN_LOOKS):
            try:
                self.refresh()
                told = None
            # Whatever it is, the folder is to be followed on.
            except Exception as error:
                if repr(error) != told:
                    log.exception("%s: cannot read %s", self.name, self.folder)
                told = repr(error)

"""Wiring: which steps a run has, in which order, and what each depends on."""

import dataclasses
import os
import pathlib
from collections.abc import Callable

from m2m_tf import evaluation_run, training
from m2m_tf.config import DatasetSpec, RunConfig, to_values
from m2m_tf.serving import pushing
from m2m_tf.versions import next_version, versions_of
from pipelines import steps


@dataclasses.dataclass(frozen=True)
class Workspace:
    """Where a run's artifacts lie.

    Args:
        config: The run's config.
        runs: Folder of all runs.
        models: Folder of all exported models.
    """

    config: RunConfig
    runs: pathlib.Path
    models: pathlib.Path

    @property
    def folder(self) -> pathlib.Path:
        """The run's own folder."""
        return self.runs / self.config.name

    @property
    def spec_path(self) -> pathlib.Path:
        """The dataset spec: the user's, or the one that a source writes."""
        if isinstance(self.config.data, pathlib.Path):
            return self.config.data
        return self.folder / "tables" / "spec.yaml"

    @property
    def spec(self) -> DatasetSpec:
        """The dataset spec."""
        return DatasetSpec.load(self.spec_path)

    @property
    def exported(self) -> pathlib.Path:
        """Folder of the exported model, one version."""
        return self.folder / "saved_model"

    @property
    def served(self) -> pathlib.Path:
        """Folder of the versions that are served."""
        return self.models / self.config.name


@dataclasses.dataclass(frozen=True)
class Step:
    """One step: a function of the workspace, and what it depends on.

    Args:
        name: Name of the step.
        run: Makes the outputs.
        settings: Plain values that the outputs depend on, beside those of the
            steps before.
        outputs: Files and folders that must exist when the step is done.
        check: Raises what would end the step at once, before the outputs of
            the last one are removed.
        keeps_outputs: Whether outputs of other settings stay (versions of an
            exported model) instead of being removed first.
    """

    name: str
    run: Callable[[Workspace], None]
    settings: Callable[[Workspace], object]
    outputs: Callable[[Workspace], list[pathlib.Path]]
    check: Callable[[Workspace], None] = lambda work: None
    keeps_outputs: bool = False


def _in_folder(*names):
    return lambda work: [work.folder / name for name in names]


def _trained_in(folder):
    names = (training.MODEL_FILE, training.HISTORY_FILE)
    return [folder, *(f"{folder}/{name}" for name in names)]


def make_steps(config: RunConfig) -> list[Step]:
    """The steps of a run, in order; each depends on all before it."""
    source = []
    if not isinstance(config.data, pathlib.Path):
        source = [
            Step(
                "tables",
                steps.make_tables,
                lambda work: to_values(work.config.data),
                _in_folder("tables"),
            )
        ]
    refit = []
    if config.refit:
        refit = [
            Step(
                "refit",
                steps.refit,
                lambda work: None,
                _in_folder(*_trained_in(steps.REFIT_FOLDER)),
            )
        ]
    return [
        *source,
        Step(
            "records",
            steps.make_records,
            steps.records_settings,
            _in_folder("records"),
            check=steps.check_tables,
        ),
        Step(
            "train",
            steps.train,
            lambda work: [
                to_values(work.config.model),
                to_values(work.config.training),
            ],
            _in_folder(*_trained_in(steps.TRAINING_FOLDER)),
            check=steps.check_model,
        ),
        Step(
            "evaluate",
            steps.evaluate,
            lambda work: (
                to_values(work.config.evaluation)
                # Which the report tells.
                | ({"refit": True} if work.config.refit else {})
            ),
            _in_folder(*evaluation_run.OUTPUTS),
        ),
        *refit,
        Step(
            "export",
            steps.export,
            lambda work: None,
            lambda work: [work.exported],
        ),
        Step(
            "push",
            steps.push,
            # Other tolerances do not publish the same model once more, which
            # a rollback would then go back to. Beside each other, the folders
            # may be moved together.
            lambda work: [
                os.path.relpath(work.served.resolve(), work.folder.resolve()),
                # A model that was rolled back from is refused, again and
                # again, and not forecast with.
                pushing.is_withdrawn(work.exported, work.served),
            ],
            lambda work: (
                versions_of(work.served) or [next_version(work.served)]
            ),
            keeps_outputs=True,
        ),
        # After the push: nobody is to read forecasts of a model it refuses.
        Step(
            "predict",
            steps.predict,
            lambda work: None,
            _in_folder(steps.FORECASTS_FILE),
        ),
    ]

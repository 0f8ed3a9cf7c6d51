"""Folders of a model's versions: `<folder>/1`, `<folder>/2`, ..."""

import os
import pathlib

SAVED_MODEL_FILE = "saved_model.pb"


def versions_of(folder: str | os.PathLike) -> list[pathlib.Path]:
    """Folders of a model's versions, oldest first.

    Example:

    >>> [version.name for version in versions_of("saved_models/clinics")]
    ['1']
    """
    versions = [
        path
        for path in pathlib.Path(folder).glob("*")
        # Digits of other scripts are digits, too.
        if path.name.isascii()
        and path.name.isdigit()
        # TF Serving counts versions in int64.
        and int(path.name) < 2**63
        and path.is_dir()
    ]
    return sorted(versions, key=lambda path: int(path.name))


def next_version(folder: str | os.PathLike) -> pathlib.Path:
    """Where the version after the newest one goes.

    Example:

    >>> next_version("saved_models/clinics").name
    '2'
    """
    versions = versions_of(folder)
    number = int(versions[-1].name) + 1 if versions else 1
    return pathlib.Path(folder) / str(number)


def latest_version(model: str | os.PathLike) -> pathlib.Path:
    """`model` itself if it is a version, else its highest version.

    Raises:
        FileNotFoundError: If there is no SavedModel.

    Example:

    >>> latest_version("saved_models/clinics").name
    '1'
    """
    model = pathlib.Path(model)
    if (model / SAVED_MODEL_FILE).exists():
        return model
    versions = versions_of(model)
    if not versions:
        raise FileNotFoundError(
            f"{model}: holds no SavedModel. Give the folder that "
            "`m2m-tf export` has written."
        )
    return versions[-1]

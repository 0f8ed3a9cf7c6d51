"""Makes docs/data_contract.md and docs/settings.md from the code.

python docs/reference.py
"""

import dataclasses
import inspect
import pathlib
import sys
import tempfile

import griffe
import polars as pl
import pydantic

from m2m_tf import config
from m2m_tf.data import schema, validation
from m2m_tf.signatures import default_values

DOCS = pathlib.Path(__file__).parent
MADE = """
<!-- Made from the code by `python docs/reference.py` (`make docs` runs it). -->
"""
CONTRACT_HEAD = f"""\
# Data contract
{MADE}
Three tables (two of them optional), Parquet or CSV files or folders of them,
and a YAML spec that says which column plays which role.
[Architecture](architecture.md#data-contract) tells what is made of them,
[Use your own data](how_to/own_data.md) how to begin.
"""
SETTINGS_HEAD = f"""\
# Settings
{MADE}
What the YAML file of `m2m-tf run` may say (`RunConfig`), and that of
`m2m-tf compare` (`StudyConfig`). A key that does not exist, or a value out of
range, is reported with its place before any work starts. In Python they are
frozen dataclasses with the same names.
"""


def main():
    """Writes the pages."""
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """File name → text of each page."""
    return {
        "data_contract.md": "\n".join(contract_lines()),
        "settings.md": "\n".join(settings_page_lines()),
    }


def contract_lines():
    sys.path.insert(0, str(DOCS.parent / "examples"))
    from make_clinics import write_clinic_tables

    lines = [CONTRACT_HEAD, "## The spec\n"]
    for cls in (
        config.DatasetSpec,
        config.Task,
        config.AttributeColumns,
        config.SplitShares,
        config.SplitDates,
    ):
        lines += settings_lines(cls)
    with tempfile.TemporaryDirectory() as folder:
        spec = config.DatasetSpec.load(
            write_clinic_tables(pathlib.Path(folder))
        )
        lines += feature_lines(spec)
    lines += [
        "## What is refused\n",
        "`m2m-tf validate spec.yaml` reads all tables and tells every problem "
        "at once. This is what it says to the clinics' tables when they are "
        "spoilt in one way each:\n",
    ]
    for what, spoil in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            path = write_clinic_tables(folder)
            message = refusal(spoil, folder, path)
            lines.append(f"- **{what}**<br>\n  {message}")
    lines += [
        "\n## What is told, but not refused\n",
        "Under what the tables hold, `validate` and `run` say `mind:` where "
        "something is allowed but hardly meant:\n",
        *[f"- {text}" for text in CONCERNS],
    ]
    lines.append(
        "\nScoring (`m2m-tf predict`) checks the same, but accepts days "
        "outside the spec, which it does not read, and entities and scenarios "
        "that no attribute table lists, which it forecasts as unknown ones.\n"
    )
    return lines


def settings_page_lines():
    lines = [SETTINGS_HEAD]
    for cls in (
        config.RunConfig,
        config.ModelSettings,
        config.TrainingSettings,
        config.EvaluationSettings,
        config.PushSettings,
        config.StudyConfig,
        config.EarlierTables,
        config.CompleteJourneySource,
        config.SimulatorSource,
    ):
        lines += settings_lines(cls, "##")
    lines += [
        "## Presets\n",
        "`preset: small` under `model` or `training` is a base that any key "
        "beside it changes; without one the base is `paper`, the defaults "
        "above. `small` differs from them in:\n",
        "| Key | `paper` | `small` |",
        "|---|---|---|",
    ]
    for presets in (config.MODEL_PRESETS, config.TRAINING_PRESETS):
        paper = dataclasses.asdict(presets["paper"])
        small = dataclasses.asdict(presets["small"])
        lines += [
            f"| `{key}` | {yaml_text(value)} | {yaml_text(small[key])} |"
            for key, value in paper.items()
            if value != small[key]
        ]
    return [*lines, ""]


def yaml_text(value):
    """A value as YAML has it."""
    return {"True": "true", "False": "false", "None": "none"}.get(
        str(value), str(value)
    )


def settings_lines(cls, heading="###"):
    """A class of settings: its summary and a list of its keys."""
    docstring = griffe.Docstring(
        inspect.getdoc(cls), parser=griffe.Parser.google
    )
    sections = docstring.parse(
        warnings=False, returns_named_value=False, warn_unknown_params=False
    )
    told = {
        argument.name: " ".join(argument.description.split())
        for section in sections
        if section.kind is griffe.DocstringSectionKind.parameters
        for argument in section.value
    }
    values = pydantic.TypeAdapter(cls).json_schema()
    # An example in Python is of no use to who writes YAML.
    summary = sections[0].value.partition("\nExample:")[0].rstrip()
    lines = [f"{heading} {cls.__name__}\n", f"{summary}\n"]
    for name, value in values["properties"].items():
        kind = kind_of(value)
        if name in values.get("required", ()):
            kind += ", required"
        elif plain(value.get("default")):
            kind += f", default `{yaml_text(value['default'])}`"
        text = f": {told[name]}" if name in told else ""
        lines.append(f"- `{name}` ({kind}){text}")
    return [*lines, ""]


def plain(default):
    return isinstance(default, (str, int, float)) and default != ""


def kind_of(value):
    """Words for a JSON schema."""
    for key in ("anyOf", "oneOf"):
        if key in value:
            return " or ".join(kind_of(option) for option in value[key])
    if "$ref" in value:
        name = value["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return " or ".join(f"`{option}`" for option in value["enum"])
    if value["type"] == "array":
        return f"list of {kind_of(value['items'])}"
    if value["type"] == "object":
        of = value.get("additionalProperties")
        return f"names → {kind_of(of)}" if isinstance(of, dict) else "mapping"
    if value.get("format") == "date":
        return "date"
    if value.get("format") == "path":
        return "path"
    words = {
        "string": "text",
        "integer": "whole number",
        "number": "number",
        "boolean": "true or false",
        "null": "none",
    }[value["type"]]
    for key, sign in (
        ("minimum", "≥"),
        ("exclusiveMinimum", ">"),
        ("exclusiveMaximum", "<"),
    ):
        if key in value:
            words += f" {sign} {value[key]:g}"
    return words


def feature_lines(spec):
    """The raw features of the clinics' spec."""
    defaults = default_values(spec)
    lines = [
        "## Raw features\n",
        "One sample as it flows before anything is fitted, and as a served "
        "model takes it. Names and shapes follow from the spec; these are the "
        f"clinics' ({spec.lookback} days seen, {spec.horizon} predicted).\n",
        "| Name | Shape | Type | May be left out |",
        "|---|---|---|---|",
    ]
    for name, tensor in schema.raw_features(spec).items():
        left_out = ""
        if name in defaults:
            value = defaults[name].ravel()[0]
            left_out = f"yes: {value if value != b'' else 'empty'}"
        lines.append(
            f"| `{name}` | {list(tensor.shape)} | {tensor.dtype} | {left_out} |"
        )
    behavior = ", ".join(f"`{x}`" for x in schema.behavior_names(spec))
    performance = ", ".join(f"`{x}`" for x in schema.performance_names(spec))
    return [
        *lines,
        "",
        f"Columns of `behavior_sequence`: {behavior}; of "
        f"`performance_sequence`: {performance}. `total_` columns hold the "
        "entity's sum over all scenarios (`cross_scenario_totals`). "
        "`days_observed` says how many of the last days the table covers: "
        "fewer than the lookback only near the first day of `start`. Of a "
        "young entity, days before its first row are zeros, as in training: "
        "leave it at the lookback (more counts as that). `cutoff` counts days "
        "since 1970-01-01.\n",
    ]


def refusal(spoil, folder, path):
    """What validation says to tables that `spoil` has been at."""
    changes = spoil(folder) or {}
    text = path.read_text(encoding="utf-8")
    for old, new in changes.items():
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
    try:
        validation.validate_tables(config.DatasetSpec.load(path))
    except (ValueError, FileNotFoundError) as error:
        problems = getattr(error, "problems", [error])
        message = " ".join(str(problems[0]).split())
        return message.replace(f"{folder.resolve()}/", "").replace("|", "\\|")
    raise AssertionError("The spoilt tables were accepted.")


def panel_with(*expressions):
    """A spoiler that changes columns of the panel."""

    def spoil(folder):
        path = folder / "panel.parquet"
        pl.read_parquet(path).with_columns(*expressions).write_parquet(path)

    return spoil


def _on_first_row(name, value):
    first = pl.int_range(pl.len()) == 0
    return pl.when(first).then(value).otherwise(pl.col(name)).alias(name)


def _repeat_a_row(folder):
    path = folder / "panel.parquet"
    rows = pl.read_parquet(path)
    pl.concat([rows, rows.head(1)]).write_parquet(path)


def _drop_a_column(folder):
    path = folder / "panel.parquet"
    pl.read_parquet(path).drop("fees").write_parquet(path)


def _in_two_files(folder):
    path = folder / "panel.parquet"
    rows = pl.read_parquet(path)
    path.unlink()
    path.mkdir()
    rows[:1000].write_parquet(path / "june.parquet")
    rows[1000:].drop("fees").write_parquet(path / "may.parquet")


def _drop_the_last_days(folder):
    path = folder / "panel.parquet"
    last = pl.col("day").max() - pl.duration(days=10)
    pl.read_parquet(path).filter(pl.col("day") < last).write_parquet(path)


def _leave_the_ends(folder):
    path = folder / "panel.parquet"
    day = pl.col("day")
    near = (day - day.min() < pl.duration(days=9)) | (day == day.max())
    pl.read_parquet(path).filter(near).write_parquet(path)


def _remove_all_rows(folder):
    path = folder / "panel.parquet"
    pl.read_parquet(path).clear().write_parquet(path)


def _separate_by_semicolons(folder):
    path = folder / "profile.csv"
    path.write_text(path.read_text().replace(",", ";"))


def _repeat_an_id(folder):
    path = folder / "profile.csv"
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")


def _repeat_a_column(folder):
    path = folder / "profile.csv"
    head, *rows = path.read_text().splitlines()
    lines = [f"{head},beds", *(f"{row},9" for row in rows)]
    path.write_text("\n".join(lines))


def _spec_with(old, new):
    return lambda folder: {old: new}


CONCERNS = (
    "no row in the last days, which then count as zeros;",
    "days with far fewer rows than is usual on their weekday, or none: a "
    "partition that was not loaded, or a last day that is not over;",
    "rows on fewer than two days of a week: a table of weeks or months;",
    "a value more than 1000 times the tenth largest of its column;",
    "ids that differ in blanks, case or zeros in front alone;",
    "an attribute without any value.",
)
CASES = {
    "A column is missing": _drop_a_column,
    "Fields are separated by semicolons": _separate_by_semicolons,
    "An id is empty": panel_with(_on_first_row("clinic", pl.lit(""))),
    "A date is written otherwise": panel_with(
        pl.col("day").dt.strftime("%d.%m.%Y")
    ),
    "Dates carry a time": panel_with(
        pl.col("day").cast(pl.Datetime).dt.offset_by("5h")
    ),
    "A day stands twice": _repeat_a_row,
    "A value is missing": panel_with(_on_first_row("staff", pl.lit(None))),
    "A value is no number": panel_with(
        _on_first_row("staff", pl.lit("$1,234"))
    ),
    "A value is not finite": panel_with(
        _on_first_row("staff", pl.lit(float("inf")))
    ),
    "A label is negative": panel_with(_on_first_row("visits", pl.lit(-1.0))),
    "A date lies outside the spec": panel_with(
        pl.col("day").dt.offset_by("1d")
    ),
    "The first days have no row": _spec_with("2025-03-01", "2025-02-01"),
    "The last days have no row": _drop_the_last_days,
    "Most days have no row": _leave_the_ends,
    "A scenario has no row in its table": panel_with(
        _on_first_row("visit_kind", pl.lit("chat"))
    ),
    "A scenario bears a name that is taken": panel_with(
        _on_first_row("visit_kind", pl.lit("(unknown)"))
    ),
    "An attribute table lists an id twice": _repeat_an_id,
    "A CSV file has a column twice": _repeat_a_column,
    "A task has nothing to learn from": panel_with(
        (pl.col("fees") * 0).alias("fees")
    ),
    "A task's unit is too large": panel_with(
        (pl.col("fees") * 1e-9).alias("fees")
    ),
    "There is no row": _remove_all_rows,
    "A file of a folder lacks a column": _in_two_files,
    "Too few days": _spec_with("lookback: 28", "lookback: 90"),
    "A table is absent": _spec_with("panel.parquet", "panels.parquet"),
    "A table is of another kind": _spec_with("profile.csv", "spec.yaml"),
    "A key of the spec is misspelt": _spec_with("horizon: 7", "horizont: 7"),
    "A task's column is no performance": _spec_with(
        "column: fees", "column: staff"
    ),
}

if __name__ == "__main__":
    main()

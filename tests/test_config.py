import dataclasses
import datetime
import pathlib

import pytest
import yaml
from tables import write_clinic_tables

from m2m_tf import config
from m2m_tf.config import ConfigError, DatasetSpec, RunConfig, StudyConfig

ROOT = pathlib.Path(__file__).parent.parent


def load_with(tmp_path, **changes):
    return DatasetSpec.load(write_clinic_tables(tmp_path, days=2, **changes))


def test_spec_round_trips_through_plain_values(clinic_spec):
    values = config.to_values(clinic_spec)
    assert config.parse(DatasetSpec, yaml.safe_load(yaml.dump(values))) == (
        clinic_spec
    )


def test_split_dates_move_with_the_end(tmp_path):
    days = datetime.date(2025, 5, 1), datetime.date(2025, 5, 31)
    spec = DatasetSpec.load(write_clinic_tables(tmp_path))
    dated = dataclasses.replace(spec, split=config.SplitDates(*days))
    earlier = dated.until(datetime.date(2025, 6, 14))
    week = datetime.timedelta(days=7)
    moved = [day - 2 * week for day in days]
    assert earlier.split == config.SplitDates(*moved)
    assert earlier.end == spec.end - 2 * week
    for day in (spec.start - week, spec.end + week):
        with pytest.raises(ConfigError, match="2025-03-01 to 2025-06-28"):
            dated.until(day)


@pytest.mark.parametrize(
    "data", [None, 7, {}, {"name": "mine"}, {"spec": "x", "end": "2025-05-31"}]
)
def test_data_that_are_none_of_a_run_are_told_what_they_may_be(data):
    with pytest.raises(ConfigError, match=r"data: must be the path of a spec"):
        config.parse(RunConfig, {"name": "x", "data": data})


def test_earlier_tables_of_a_study_are_found_from_its_config(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        "name: s\ndata:\n  may: {spec: tables/spec.yaml, end: 2025-05-31}\n"
    )
    (data,) = StudyConfig.load(path).data.values()
    assert data.spec == (tmp_path / "tables" / "spec.yaml").resolve()
    path.write_text("name: s\ndata:\n  may: {spec: x.yaml, ende: 2025-05-31}\n")
    with pytest.raises(ConfigError, match="may.end: is missing") as caught:
        StudyConfig.load(path)
    assert "may.ende: is not a setting" in str(caught.value)


def test_table_paths_are_relative_to_the_spec(tmp_path):
    spec = load_with(tmp_path)
    assert spec.panel == (tmp_path / "panel.parquet").resolve()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lookbak": 3}, r"lookbak: is not a setting; is lookback meant\?"),
        ({"Look-Back": 3}, r"Look-Back: is not a .*; is lookback meant\?"),
        ({"epochs": 3}, r"epochs: is not a setting; it is one elsewhere"),
        ({"xyz": 3}, r"xyz: is not a setting; check the spelling"),
        ({"start": 20250301}, r"must be a date, as in .*: 20250301"),
        ({"start": "1/3/2025"}, r"must be a date, as in .*: '1/3/2025'"),
        ({"lookback": 0}, r"lookback: .*greater than or equal to 1"),
        ({"start": "2025-13-01"}, r"start: .*Received: '2025-13-01'"),
        (
            {"tasks": [{"name": "x", "column": "nope"}]},
            r"Task 'x': column 'nope' must be one of `performance`",
        ),
        (
            {"behavior": ["staff", "visits"]},
            r"key and value columns must differ.*\['visits'\]",
        ),
        ({"activity": "nope"}, r"`activity` must be one of .*nope"),
        ({"activity": ""}, r"`activity` must be one of .*activity=''"),
        ({"": 1}, r": is not a setting"),
        ({"end": "2025-01-01"}, r"`end` must not be before `start`"),
        (
            {"split": {"train": 0.5, "validation": 0.1, "test": 0.1}},
            r"must add up to 1\. Received: 0\.7",
        ),
        ({"lookback": 3}, r"`known_future` needs lookback >= horizon"),
        ({"tasks": []}, r"tasks: "),
        (
            {"profile_columns": {"categorical": ["town", "size of it", "€"]}},
            r"profile_columns: .*only letters.*rename.*"
            r"\['size of it', '€'\]",
        ),
        (
            {"scenario_columns": {"numeric": ["fee.share", "fee_share"]}},
            r"scenario_columns: .*attribute columns, with _ .*\['fee_share'\]",
        ),
        (
            {"behavior": ["staff", "total_visits"]},
            r"called as totals over scenarios are; .*\['total_visits'\]",
        ),
        (
            {"behavior": ["staff", "profile_beds"]},
            r"called as the inputs that attributes .*\['profile_beds'\]",
        ),
        (
            {
                "tasks": [
                    {"name": "visits", "column": "visits"},
                    {"name": "visits_lower", "column": "fees"},
                ]
            },
            r"Tasks may not be .*other columns of a forecast.*'visits_lower'",
        ),
        (
            {"tasks": [{"name": "cutoff", "column": "visits"}]},
            r"Tasks may not be .*other columns of a forecast.*'cutoff'",
        ),
        (
            {"tasks": [{"name": "x", "column": "visits", "weight": "mean"}]},
            r"tasks\.0\.weight: Input should be 'inverse_mean'\. .*'mean'",
        ),
        (
            {"tasks": [{"name": "x", "column": "visits", "weight": -1}]},
            r"tasks\.0\.weight: Input should be greater than 0\. .*-1",
        ),
        ({"behavior": "staff"}, r"behavior: must be a list, as in \[a, b\]"),
        ({"tasks": ["visits"]}, r"tasks\.0: must be a mapping, as in \{key"),
        (
            {"split": {"train_end": "2025-05-31"}},
            r"spec.yaml:\n  split\.validation_end: is missing\.$",
        ),
        (
            {"split": {"train": 0.8, "validation": 0.1, "test": 0.3}},
            r"spec.yaml:\n  split: [^\n]*$",
        ),
        ({"entity": "visits_upper"}, r"Keys may not be .*'visits_upper'"),
        (
            {"profile_columns": {"categorical": ["town", "clinic"]}},
            r"Attribute columns may not be .* the key of .*\['clinic'\]",
        ),
    ],
)
def test_wrong_spec_is_rejected_with_its_place(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        load_with(tmp_path, **changes)


def test_all_problems_of_a_spec_are_reported_together(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_with(tmp_path, lookback=0, horizon="x", typo=1)
    for word in ("lookback", "horizon", "typo"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: text.replace("'2025-03-01'", "2025-13-01"),
            "spec.yaml: is not valid YAML: month must",
        ),
        (
            lambda text: text + "entity: other\n",
            "spec.yaml: .*'entity' stands there twice",
        ),
    ],
)
def test_yaml_that_says_something_else_is_refused(tmp_path, change, message):
    spec = write_clinic_tables(tmp_path)
    changed = change(spec.read_text())
    assert changed != spec.read_text()
    spec.write_text(changed)
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        DatasetSpec.load(spec)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.yaml: cannot be read"):
        DatasetSpec.load(tmp_path / "nowhere.yaml")


def test_preset_is_a_base_that_settings_change(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "name: x\ndata: spec.yaml\nmodel: {preset: small, num_experts: 7}\n"
    )
    run = RunConfig.load(path)
    expected = dataclasses.replace(config.MODEL_PRESETS["small"], num_experts=7)
    assert run.model == expected
    assert run.training == config.TRAINING_PRESETS["paper"]
    assert run.data == (tmp_path / "spec.yaml").resolve()


def test_a_file_of_another_kind_is_told_to_be_one(tmp_path):
    spec = write_clinic_tables(tmp_path / "tables")
    run, study = tmp_path / "run.yaml", tmp_path / "study.yaml"
    run.write_text("name: a\ndata: spec.yaml\nrefit: true\npush: {}\n")
    study.write_text(
        "name: a\ndata: {b: spec.yaml}\nmodels: [m2m]\nseeds: [0]\n"
    )
    kinds = {DatasetSpec: spec, RunConfig: run, StudyConfig: study}
    of = {
        DatasetSpec: "the spec of a dataset",
        RunConfig: "the config of a run",
        StudyConfig: "the config of a study",
    }
    for wanted in kinds:
        for found, path in kinds.items():
            if found is wanted:
                wanted.load(path)
                continue
            with pytest.raises(ConfigError) as told:
                wanted.load(path)
            assert f"{path}: is {of[found]}, which" in str(told.value)
            assert f"Wanted: {of[wanted]}." in str(told.value)


def test_unknown_preset_lists_the_known(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("name: x\ndata: a.yaml\nmodel: {preset: huge}\n")
    with pytest.raises(ConfigError, match=r"\['paper', 'small'\].*'huge'"):
        RunConfig.load(path)


def test_a_preset_and_changes_of_a_search_are_what_they_should_be(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("name: x\ndata: a.yaml\nmodel: {preset: [small]}\n")
    with pytest.raises(ConfigError, match=r"must be one of .*\['small'\]"):
        RunConfig.load(path)
    study = {"name": "x", "data": {"a": "a.yaml"}, "search": [{"model": None}]}
    with pytest.raises(ConfigError, match=r"each a mapping.*\[None\]"):
        config.parse(config.StudyConfig, study)


def test_paper_preset_has_the_sizes_of_the_paper():
    model = config.MODEL_PRESETS["paper"]
    assert (model.embedding_dim, model.num_heads) == (16, 2)
    assert (model.view_dim, model.knowledge_dim) == (256, 64)
    assert (model.num_meta_layers, model.num_experts) == (3, 4)
    assert model.meta_rank is None and not model.history_offset
    training = config.TRAINING_PRESETS["paper"]
    assert (training.batch_size, training.epochs) == (256, 10)
    assert (training.learning_rate, training.clip_value) == (2e-3, 3.0)
    assert (training.beta_2, training.epsilon) == (0.998, 1e-9)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "pipelines/configs").glob("*.yaml")), ids=str
)
def test_shipped_configs_are_valid(path):
    if path.stem.startswith("compare_"):
        study = config.StudyConfig.load(path)
        assert f"compare_{study.name}" == path.stem
    else:
        assert RunConfig.load(path).name == path.stem


def test_fingerprint_changes_with_any_setting(clinic_spec):
    changed = dataclasses.replace(clinic_spec, lookback=29)
    assert config.fingerprint(clinic_spec) != config.fingerprint(changed)


def test_names_are_refused_in_words_and_once():
    values = {"name": "mine", "data": "spec.yaml"}
    with pytest.raises(ConfigError) as caught:
        config.parse(RunConfig, values | {"name": "my run"})
    assert str(caught.value).splitlines()[1:] == [
        "  name: may hold only letters from a to z, digits and _ . -, and "
        "begin with a letter or digit. Received: 'my run'."
    ]
    task = {"name": "1st task", "column": "visits"}
    with pytest.raises(ConfigError) as caught:
        config.parse(DatasetSpec, {"tasks": [task]})
    (line,) = [x for x in str(caught.value).splitlines() if "tasks" in x]
    assert line == (
        "  tasks.0.name: may hold only letters from a to z, digits and _, and "
        "begin with no digit. Received: '1st task'."
    )
    with pytest.raises(ConfigError, match="tasks: Tuple should have at least"):
        config.parse(DatasetSpec, {"tasks": []})

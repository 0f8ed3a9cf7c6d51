import pathlib
import re

import make_clinics
import pytest
import yaml
from tables import write_clinic_tables

README = pathlib.Path(__file__).parent.parent / "README.md"


def blocks(language):
    text = README.read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_spec_and_config_are_those_of_the_example(tmp_path):
    make_clinics.main(str(tmp_path))
    for block, name in zip(
        blocks("yaml"), ("spec.yaml", "clinics.yaml"), strict=True
    ):
        made = yaml.safe_load((tmp_path / name).read_text(encoding="utf-8"))
        shown = yaml.safe_load(block)
        for key in ("start", "end"):
            if key in shown:
                shown[key] = shown[key].isoformat()
        assert shown == made


@pytest.mark.slow
def test_python_runs_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = write_clinic_tables(tmp_path / "runs/demo/tables")
    assert spec.name == "spec.yaml"
    block, _ = blocks("python")  # The other one needs a server.
    exec(compile(block, str(README), "exec"), {})
    assert (tmp_path / "saved_models/notebook/1/saved_model.pb").exists()

"""The files of deploy/ against the schemas of their own formats."""

import pathlib
import re
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from m2m_tf.serving.client import ROWS_PER_REQUEST
from m2m_tf.serving.model_store import MAX_ROWS, NUM_VERSIONS

DEPLOY = pathlib.Path(__file__).parents[2] / "deploy"


def manifests():
    text = (DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")
    return {x["kind"]: x for x in yaml.safe_load_all(text)}


@pytest.mark.parametrize("kind", manifests())
def test_kubernetes_manifests_are_valid(kind):
    kubernetes_validate.validate(manifests()[kind], "1.30", strict=True)


def test_compose_file_is_valid():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    command += ["vendor.compose-spec", str(DEPLOY / "compose.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout


def test_model_config_is_one_of_tf_serving():
    config = text_format.Parse(
        (DEPLOY / "models.config").read_text(encoding="utf-8"),
        model_server_config_pb2.ModelServerConfig(),
    )
    (model,) = config.model_config_list.config
    assert model.base_path == f"/models/{model.name}"
    latest = model.model_version_policy.latest.num_versions
    assert latest == NUM_VERSIONS


def test_batching_takes_what_the_client_and_the_local_server_do():
    text = (DEPLOY / "batching.config").read_text(encoding="utf-8")
    found = dict(re.findall(r"(\w+) { value: (\w+) }", text))
    # Larger requests would be refused, and this is their limit.
    assert int(found["max_batch_size"]) == MAX_ROWS >= ROWS_PER_REQUEST
    assert found["enable_large_batch_splitting"] == "true"
    assert int(found["max_execution_batch_size"]) <= MAX_ROWS


def test_cluster_and_compose_serve_alike():
    """One place for each setting is not to be had: two formats, two copies."""
    found = manifests()
    for name, text in found["ConfigMap"]["data"].items():
        assert text == (DEPLOY / name).read_text(encoding="utf-8")
    pod = found["Deployment"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    (service,) = compose["services"].values()
    assert container["args"] == service["command"]
    assert container["image"] == service["image"]
    assert found["Service"]["spec"]["selector"] == pod["metadata"]["labels"]
    for port in service["ports"]:
        assert port.startswith("127.0.0.1:")

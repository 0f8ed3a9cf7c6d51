"""What every server of an exported model must do: TF Serving or the local one.

By default it is the local server with the tests' model. To ask another one:

    M2M_TF_REST=http://host:8501 M2M_TF_GRPC=host:8500 \\
    M2M_TF_MODEL=saved_models/demo pytest tests/serving/test_conformance.py

`M2M_TF_MODEL` is the folder of versions that it serves, under the folder's
name; its newest version, called in this process, tells what is right.
"""

import base64
import dataclasses
import json
import os
import pathlib

import grpc
import numpy as np
import pytest
import tensorflow as tf
from local_server import (
    NAME,
    ROWS,
    Server,
    by_row,
    check_forecasts,
    plain,
    predict_request,
)
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    regression_pb2,
)

from m2m_tf import files
from m2m_tf.export import CONTRACT_FILE, draw_rows
from m2m_tf.serving.client import ROWS_PER_REQUEST, Client, RequestError
from m2m_tf.serving.model_store import LoadedModel
from m2m_tf.signatures import serialize_example
from m2m_tf.versions import latest_version


@dataclasses.dataclass
class Target:
    """A server, and what its answers must be."""

    server: Server
    name: str
    version: int
    contract: dict
    rows: dict
    model: LoadedModel

    def __post_init__(self):
        self.told = self.model.run("predict", self.rows)
        self.expected = {name: x[:, 0] for name, x in self.told.items()}
        self.path = f"/v1/models/{self.name}"
        self.regression = next(
            name
            for name in self.model.signature_names
            if name.startswith("regress_")
        )
        self.means = self.expected[self.regression.removeprefix("regress_")]

    def post(self, body, verb="predict"):
        # httpx would refuse NaN, which TF Serving reads.
        return self.server.rest.post(
            f"{self.path}:{verb}", content=json.dumps(body)
        )

    def request(self, inputs=None, **spec):
        inputs = self.rows if inputs is None else inputs
        return predict_request(inputs, name=self.name, **spec)

    @property
    def examples(self):
        return [
            serialize_example({name: x[row] for name, x in self.rows.items()})
            for row in range(ROWS)
        ]


@pytest.fixture(scope="session")
def target(request):
    if "M2M_TF_REST" in os.environ:
        folder = pathlib.Path(os.environ["M2M_TF_MODEL"]).resolve()
        server = Server(os.environ["M2M_TF_REST"], os.environ["M2M_TF_GRPC"])
        name = folder.name
        rows = None
    else:
        folder = request.getfixturevalue("exported")
        server, name = request.getfixturevalue("server"), NAME
        # Real ones, some of whose numbers are not known.
        rows = request.getfixturevalue("raw")
    version = latest_version(folder)
    contract = files.read_json(version / CONTRACT_FILE)
    if rows is None:
        rows = draw_rows(contract, ROWS)
    model = LoadedModel(version)
    return Target(server, name, model.version, contract, rows, model)


def test_rest_columns(target):
    body = {"signature_name": "predict", "inputs": plain(target.rows)}
    for path in (target.path, f"{target.path}/versions/{target.version}"):
        answer = target.server.rest.post(
            f"{path}:predict", content=json.dumps(body)
        )
        assert answer.status_code == 200, answer.text
        check_forecasts(answer.json()["outputs"], target.expected)


def rows_of(answer):
    assert answer.status_code == 200, answer.text
    rows = answer.json()["predictions"]
    return {name: [row[name] for row in rows] for name in rows[0]}


def test_rest_rows(target):
    answer = target.post(
        {"signature_name": "predict", "instances": by_row(target.rows)}
    )
    check_forecasts(rows_of(answer), target.expected)


def test_rest_examples(target):
    encoded = [{"b64": base64.b64encode(x).decode()} for x in target.examples]
    answer = target.post({"instances": encoded})
    check_forecasts(rows_of(answer), target.expected)


def test_rest_regress(target):
    body = {
        "signature_name": target.regression,
        "examples": [
            {name: np.ravel(x).tolist() for name, x in row.items()}
            for row in by_row(target.rows)
        ],
    }
    answer = target.post(body, "regress")
    assert answer.status_code == 200, answer.text
    np.testing.assert_allclose(
        answer.json()["results"], target.means, rtol=1e-5, atol=1e-6
    )


def test_grpc_predict(target):
    response = target.server.predictions.Predict(target.request())
    assert response.model_spec.version.value == target.version
    check_forecasts(
        {k: tf.make_ndarray(x) for k, x in response.outputs.items()},
        target.expected,
    )
    request = target.request(version=target.version)
    wanted = next(iter(target.expected))
    request.output_filter.append(wanted)
    response = target.server.predictions.Predict(request)
    assert list(response.outputs) == [wanted]


def test_grpc_examples(target):
    request = target.request(
        {"examples": np.array(target.examples, object)}, signature=""
    )
    response = target.server.predictions.Predict(request)
    check_forecasts(
        {k: tf.make_ndarray(x) for k, x in response.outputs.items()},
        target.expected,
    )


def test_grpc_regress(target):
    request = regression_pb2.RegressionRequest()
    request.model_spec.name = target.name
    request.model_spec.signature_name = target.regression
    for example in target.examples:
        request.input.example_list.examples.append(
            tf.train.Example.FromString(example)
        )
    told = target.server.predictions.Regress(request).result.regressions
    np.testing.assert_allclose(
        [x.value for x in told], target.means, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kind", ["rest", "grpc"])
@pytest.mark.parametrize("signature", ["predict", "explain"])
def test_client(target, kind, signature):
    with Client(target.server.addresses[kind], target.name) as client:
        told = client.predict(target.rows, signature)
        with pytest.raises(RequestError):
            client.predict(target.rows, "guess")
    expected = target.model.run(signature, target.rows)
    assert set(told.columns) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(
            np.ravel(told[name].to_list()),
            np.ravel(values),
            rtol=1e-5,
            atol=1e-6,
        )


def test_as_many_rows_as_the_client_sends_at_once(target):
    many = {
        name: np.concatenate([x] * (ROWS_PER_REQUEST // ROWS))
        for name, x in target.rows.items()
    }
    told = target.server.predictions.Predict(target.request(many), timeout=60)
    for name, values in target.expected.items():
        got = tf.make_ndarray(told.outputs[name])
        assert len(got) == ROWS_PER_REQUEST
        np.testing.assert_allclose(
            np.ravel(got[-ROWS:]), values, rtol=1e-5, atol=1e-6
        )


def test_status(target):
    states = target.server.rest.get(target.path).json()["model_version_status"]
    assert {"AVAILABLE"} == {
        x["state"] for x in states if x["version"] == str(target.version)
    }
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = target.name
    entries = target.server.models.GetModelStatus(request).model_version_status
    assert 30 in [x.state for x in entries if x.version == target.version]


def test_metadata(target):
    answer = target.server.rest.get(f"{target.path}/metadata").json()
    rest = answer["metadata"]["signature_def"]["signature_def"]
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    request.model_spec.name = target.name
    request.metadata_field.append("signature_def")
    told = target.server.predictions.GetModelMetadata(request)
    by_grpc = get_model_metadata_pb2.SignatureDefMap()
    assert told.metadata["signature_def"].Unpack(by_grpc)
    for name, signature in target.contract["signatures"].items():
        definition = by_grpc.signature_def[name]
        assert definition.method_name == signature["method"]
        assert rest[name]["method_name"] == signature["method"]
        assert set(rest[name]["inputs"]) == set(signature["inputs"])
        for key, tensor in signature["inputs"].items():
            dtype = tf.dtypes.as_dtype(tensor["dtype"])
            assert definition.inputs[key].dtype == dtype.as_datatype_enum
            shape = tf.TensorShape(definition.inputs[key].tensor_shape)
            sizes = [-1 if x is None else x for x in shape.as_list()]
            assert sizes == tensor["shape"]


def without(columns, name):
    return {k: x for k, x in columns.items() if k != name}


MALFORMED = {
    "truncated": lambda columns: None,
    "missing": lambda columns: without(columns, "cutoff"),
    "extra": lambda columns: columns | {"weather": [1] * ROWS},
    "dtype": lambda columns: columns | {"cutoff": ["a"] * ROWS},
    "shape": lambda columns: columns | {"behavior_sequence": [[1.0]] * ROWS},
    "rows": lambda columns: columns | {"cutoff": [40]},
    "null": lambda columns: (
        columns
        | {
            "behavior_sequence": np.full_like(
                columns["behavior_sequence"], None, object
            ).tolist()
        }
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_rest_is_the_caller_s_fault(target, name):
    columns = MALFORMED[name](plain(target.rows))
    body = {"signature_name": "predict", "inputs": columns}
    if columns is None:
        answer = target.server.rest.post(
            f"{target.path}:predict", content=b'{"inputs": {'
        )
    else:
        answer = target.post(body)
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["error"]
    test_rest_columns(target)


@pytest.mark.parametrize("name", ["missing", "extra", "dtype", "shape", "rows"])
def test_malformed_grpc_is_the_caller_s_fault(target, name):
    inputs = MALFORMED[name](dict(target.rows))
    request = target.request(
        {key: np.array(values) for key, values in inputs.items()}
    )
    with pytest.raises(grpc.RpcError) as error:
        target.server.predictions.Predict(request, timeout=60)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    test_grpc_predict(target)


def test_a_signature_that_is_not_there_is_a_bad_request(target):
    body = {"signature_name": "guess", "instances": [1]}
    assert target.post(body).status_code == 400
    request = target.request()
    request.model_spec.signature_name = "guess"
    with pytest.raises(grpc.RpcError) as error:
        target.server.predictions.Predict(request, timeout=60)
    assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    asked = get_model_metadata_pb2.GetModelMetadataRequest()
    asked.model_spec.name = target.name
    with pytest.raises(grpc.RpcError) as error:
        target.server.predictions.GetModelMetadata(asked, timeout=60)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_what_is_not_there_is_not_found(target):
    for path in (
        "/v1/models/no_such_model",
        f"{target.path}/versions/123456789",
    ):
        assert target.server.rest.get(path).status_code == 404
    for change in (
        lambda spec: setattr(spec, "name", "no_such_model"),
        lambda spec: setattr(spec.version, "value", 123456789),
    ):
        request = target.request()
        change(request.model_spec)
        with pytest.raises(grpc.RpcError) as error:
            target.server.predictions.Predict(request, timeout=60)
        assert error.value.code() == grpc.StatusCode.NOT_FOUND

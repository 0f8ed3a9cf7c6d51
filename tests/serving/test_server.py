"""The local server as a process of its own, asked over loopback."""

import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, example, given, settings, strategies as st
from local_server import (
    NAME,
    ROWS,
    by_row,
    check_forecasts,
    plain,
    predict_request,
    running,
    wait_for,
)
from tables import SMALL_MODEL
from tensorflow_serving.apis import get_model_status_pb2, model_pb2

from m2m_tf.export import export_model
from m2m_tf.models import build_model
from m2m_tf.serving.model_store import LoadedModel
from pipelines import cli


def test_metrics_tell_of_requests(server):
    server.rest.get(f"/v1/models/{NAME}")
    metrics = server.rest.get("/monitoring/prometheus/metrics").text
    assert 'm2m_requests_total{api="rest",method="status"' in metrics


def without(raw, name):
    return {k: x for k, x in raw.items() if k != name}


def changed(raw, name, value):
    columns = plain(raw)
    columns[name] = value(columns[name]) if callable(value) else value
    return {"signature_name": "predict", "inputs": columns}


MALFORMED = {
    "truncated": (lambda raw: b'{"inputs": {', 400, "no JSON"),
    "not JSON": (lambda raw: b"\xff\x00", 400, "no JSON"),
    "deep": (lambda raw: b"[" * 100_000, 400, "no JSON"),
    "a list": (lambda raw: [], 400, "JSON object"),
    "neither": (lambda raw: {}, 400, "instances"),
    "no rows": (lambda raw: {"instances": []}, 400, "instances"),
    "unequal rows": (
        lambda raw: {
            "signature_name": "predict",
            "instances": [*by_row(raw), {"cutoff": 1}],
        },
        400,
        "Row 4",
    ),
    "missing": (
        lambda raw: {
            "signature_name": "predict",
            "inputs": plain(without(raw, "cutoff")),
        },
        400,
        "cutoff",
    ),
    "extra": (lambda raw: changed(raw, "weather", [1] * ROWS), 400, "weather"),
    "wrong dtype": (
        lambda raw: changed(raw, "cutoff", ["a"] * ROWS),
        400,
        "cutoff",
    ),
    "a fraction": (
        lambda raw: changed(raw, "cutoff", [1.5] * ROWS),
        400,
        "cutoff",
    ),
    "too large": (
        lambda raw: changed(raw, "cutoff", [2**70] * ROWS),
        400,
        "cutoff",
    ),
    "wrong shape": (
        lambda raw: changed(raw, "behavior_sequence", [[1.0]] * ROWS),
        400,
        "behavior_sequence",
    ),
    "ragged": (
        lambda raw: changed(
            raw, "behavior_sequence", lambda x: [x[0][:3], *x[1:]]
        ),
        400,
        "behavior_sequence",
    ),
    "other rows": (lambda raw: changed(raw, "cutoff", [1, 2]), 400, "cutoff"),
    "NaN": (
        lambda raw: changed(
            raw, "behavior_sequence", lambda x: (np.array(x) * np.nan).tolist()
        ),
        400,
        "behavior_sequence",
    ),
    "infinity": (
        lambda raw: changed(raw, "profile_beds", [float("inf")] * ROWS),
        400,
        "profile_beds",
    ),
    "no text": (
        lambda raw: changed(raw, "scenario", [{"x": 1}] * ROWS),
        400,
        "scenario",
    ),
    "truth": (lambda raw: changed(raw, "cutoff", [True] * ROWS), 400, "cutoff"),
    "bad base64": (lambda raw: {"instances": [{"b64": "?"}]}, 400, "examples"),
    "no example": (lambda raw: {"instances": [{"b64": "AAAA"}]}, 400, "xample"),
    "unknown signature": (
        lambda raw: {"signature_name": "guess", "instances": [1]},
        400,
        "guess",
    ),
    "many rows": (
        lambda raw: {"instances": [{"b64": ""}] * 5000},
        400,
        "4096 rows",
    ),
    "large": (lambda raw: b" " * 3_000_000, 413, "2000000 bytes"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_requests_are_the_caller_s_fault(server, raw, expected, name):
    make, status, field = MALFORMED[name]
    answer = server.post("predict", make(raw))
    assert answer.status_code == status, answer.text
    assert field in answer.json()["error"]
    good = server.predictions.Predict(predict_request(raw))
    check_forecasts(
        {k: tf.make_ndarray(x) for k, x in good.outputs.items()}, expected
    )


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("GET", "/v1/models/other", 404),
        ("GET", f"/v1/models/{NAME}/versions/7", 404),
        ("GET", f"/v1/models/{NAME}/versions/%C2%B2", 400),
        ("GET", f"/v1/models/{NAME}/versions/..%2F..%2Fetc", 404),
        ("GET", f"/v1/models/..%2F{NAME}", 404),
        ("GET", f"/v1/models/{NAME}:predict", 405),
        ("POST", f"/v1/models/{NAME}", 405),
        ("POST", f"/v1/models/{NAME}:classify", 404),
        ("POST", f"/v1/models/{NAME}/versions/9:predict", 404),
        ("DELETE", f"/v1/models/{NAME}", 405),
        ("GET", "/", 404),
    ],
)
def test_paths_that_are_not_there(server, method, path, status):
    body = b'{"instances": [1]}' if method == "POST" else None
    answer = server.rest.request(method, path, content=body)
    assert answer.status_code == status, answer.text
    assert "error" in answer.json()


@pytest.mark.parametrize(
    "change, code, field",
    [
        (lambda r: r.inputs.pop("cutoff"), "INVALID_ARGUMENT", "cutoff"),
        (
            lambda r: r.inputs["cutoff"].CopyFrom(
                tf.make_tensor_proto([1.0] * ROWS)
            ),
            "INVALID_ARGUMENT",
            "cutoff",
        ),
        (
            lambda r: setattr(r.inputs["cutoff"], "dtype", 99),
            "INVALID_ARGUMENT",
            "cutoff",
        ),
        (
            lambda r: r.inputs["cutoff"].tensor_shape.dim.add(size=10**12),
            "INVALID_ARGUMENT",
            "cutoff",
        ),
        (
            # 2.4 GB, if it were filled.
            lambda r: setattr(
                r.inputs["cutoff"].tensor_shape.dim[0], "size", 300_000_000
            ),
            "INVALID_ARGUMENT",
            "4096 rows",
        ),
        (
            lambda r: setattr(r.model_spec, "name", "other"),
            "NOT_FOUND",
            "other",
        ),
        (
            lambda r: setattr(r.model_spec.version, "value", 5),
            "NOT_FOUND",
            "version 5",
        ),
        (
            lambda r: setattr(r.model_spec, "version_label", "stable"),
            "NOT_FOUND",
            "labels",
        ),
        (
            lambda r: r.output_filter.append("weather"),
            "INVALID_ARGUMENT",
            "weather",
        ),
    ],
)
def test_malformed_grpc_requests(server, raw, change, code, field):
    request = predict_request(raw)
    change(request)
    with pytest.raises(grpc.RpcError) as error:
        server.predictions.Predict(request, timeout=60)
    assert error.value.code().name == code
    assert field in error.value.details()


@given(data=st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
@example(data=b"\xff\xff\xff")
def test_fuzzed_messages_are_the_caller_s_fault(server, data):
    for method in ("Predict", "Regress", "GetModelMetadata"):
        call = server.channel.unary_unary(
            f"/tensorflow.serving.PredictionService/{method}"
        )
        with pytest.raises(grpc.RpcError) as error:
            call(data, timeout=60)
        # Not found: bytes that happen to be a message ask for no model.
        assert error.value.code() in (
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.NOT_FOUND,
        )


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(
            st.sampled_from(["b64", "cutoff", "scenario", "examples", "x"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=10,
)


@given(data=st.data())
@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_fuzzed_bodies_never_break_the_server(server, raw, data):
    body = {"signature_name": "predict", "inputs": plain(raw)}
    if data.draw(st.booleans()):
        body = {"signature_name": "predict", "instances": by_row(raw)[:1]}
    place = body
    for _ in range(data.draw(st.integers(0, 2))):
        keys = list(place) if isinstance(place, dict) else range(len(place))
        inner = place[data.draw(st.sampled_from(sorted(keys)))]
        if not isinstance(inner, (dict, list)) or not inner:
            break
        place = inner
    keys = sorted(place) if isinstance(place, dict) else range(len(place))
    place[data.draw(st.sampled_from(keys))] = data.draw(VALUES)
    verb = data.draw(st.sampled_from(["predict", "regress"]))
    answer = server.post(verb, body)
    assert answer.status_code in (200, 400, 404), answer.text


def test_slow_senders_are_let_go_and_delay_nobody(server, raw, expected):
    url = server.rest.base_url
    with socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(
            f"POST /v1/models/{NAME}:predict HTTP/1.1\r\n"
            "Host: x\r\nContent-Length: 100\r\n\r\n{".encode()
        )
        response = server.predictions.Predict(predict_request(raw), timeout=30)
        assert len(response.outputs) == len(expected)
        connection.settimeout(30)
        assert b"408" in connection.recv(1000)


def test_a_port_that_is_taken_is_said(exported):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for option in ("--rest-port", "--grpc-port"):
            other = ({"--rest-port", "--grpc-port"} - {option}).pop()
            command = [sys.executable, "-m", "pipelines.cli", "serve"]
            command += [str(exported), option, str(port), other, "0"]
            result = subprocess.run(
                command, capture_output=True, text=True, timeout=120
            )
            assert result.returncode == 2, result.stderr
            assert str(port) in result.stderr
            assert "Traceback" not in result.stderr


def test_a_missing_extra_is_said(exported, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "m2m_tf.serving.server", raising=False)
    assert cli.main(["serve", str(exported)]) == 2
    assert "pip install 'm2m_tf[serve]'" in capsys.readouterr().err


def states(server):
    told = server.rest.get(f"/v1/models/{NAME}").json()
    return {int(x["version"]): x["state"] for x in told["model_version_status"]}


def test_sigterm_while_a_version_loads_ends_it(exported):
    command = [sys.executable, "-m", "pipelines.cli", "serve", str(exported)]
    process = subprocess.Popen(
        [*command, "--rest-port", "0", "--grpc-port", "0"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for line in process.stderr:
            if "loading version 1" in line:
                break
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()


def test_the_newest_versions_answer_and_links_are_followed(exported, tmp_path):
    for version in (1, 2, 3):
        shutil.copytree(exported / "1", tmp_path / "versions" / str(version))
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "versions")
    with running(link) as server:
        assert states(server) == dict.fromkeys((3, 2), "AVAILABLE")
        # Away for a while, as a network's folder may be.
        (tmp_path / "versions").rename(tmp_path / "away")
        time.sleep(2.5)
        assert states(server) == dict.fromkeys((3, 2), "AVAILABLE")
        # A version that is still being copied is tried again.
        shutil.copytree(
            exported / "1",
            tmp_path / "away" / "4",
            ignore=shutil.ignore_patterns("saved_model.pb"),
        )
        (tmp_path / "away").rename(tmp_path / "versions")
        wait_for(lambda: states(server) == {4: "END", 3: "AVAILABLE"})
        shutil.copy(
            exported / "1" / "saved_model.pb", tmp_path / "versions" / "4"
        )
        wait_for(lambda: states(server)[4] == "AVAILABLE")


def test_ipv6(exported):
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    with running(exported, "--host", "::1") as server:
        assert states(server) == {1: "AVAILABLE"}
        told = server.models.GetModelStatus(
            get_model_status_pb2.GetModelStatusRequest(
                model_spec=model_pb2.ModelSpec(name=NAME)
            )
        )
        assert told.model_version_status[0].version == 1


@pytest.mark.parametrize(
    "example, message",
    [
        ({"cutoff": 1}, "^Feature: .*is required"),
        ({"cutoff": 1.5}, "^Key: cutoff.*Data types don't match"),
        ({"\ud800": 1}, "name of a feature is no text"),
    ],
)
def test_malformed_examples_are_said_by_feature(server, example, message):
    body = {"signature_name": "regress_visits", "examples": [example]}
    answer = server.post("regress", body)
    assert answer.status_code == 400
    assert re.search(message, answer.json()["error"]), answer.text


def test_long_values_are_not_told_whole(server, raw):
    body = changed(raw, "cutoff", ["x" * 100_000] * ROWS)
    error = server.post("predict", body).json()["error"]
    assert error.startswith("'cutoff' must be int64") and len(error) < 1100


def test_who_hangs_up_is_no_failure_of_the_server(server):
    def hung_up():
        metrics = server.rest.get("/monitoring/prometheus/metrics").text
        return 'method="predict",status="CANCELLED"' in metrics

    url = server.rest.base_url
    with socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(
            f"POST /v1/models/{NAME}:predict HTTP/1.1\r\n"
            "Host: x\r\nContent-Length: 100\r\n\r\n{".encode()
        )
    wait_for(hung_up)


@pytest.mark.slow
def test_versions_change_under_load(clinic_data, exported, raw, tmp_path):
    """1 → 2 → 3 are published, 1 is removed: no answer fails or is mixed."""
    versions = tmp_path / "versions"
    shutil.copytree(exported / "1", versions / "1")
    preprocessor = clinic_data.preprocessor
    model = build_model(preprocessor.model_inputs, SMALL_MODEL)
    for _ in range(2):
        model.set_weights([1.05 * w + 0.01 for w in model.get_weights()])
        export_model(model, preprocessor, versions)
    offline = {
        int(path.name): LoadedModel(path).run("predict", raw)
        for path in versions.iterdir()
    }
    served = tmp_path / "served"
    served.mkdir()
    shutil.move(versions / "1", served / "1")
    answers, failures = [], []
    stop = threading.Event()

    def ask(server):
        while not stop.is_set():
            try:
                response = server.predictions.Predict(predict_request(raw))
                told = {
                    k: tf.make_ndarray(x) for k, x in response.outputs.items()
                }
                version = response.model_spec.version.value
                for name, values in offline[version].items():
                    np.testing.assert_allclose(told[name], values, rtol=1e-5)
                answers.append(version)
                body = {"signature_name": "predict", "inputs": plain(raw)}
                told = server.post("predict", body).json()["outputs"]["fees"]
                assert any(
                    np.allclose(told, values["fees"], rtol=1e-5)
                    for values in offline.values()
                )
            # A thread's exception would be lost.
            except Exception as error:
                failures.append(error)
                return

    with running(served) as server:
        threads = [
            threading.Thread(target=ask, args=(server,)) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for number in (2, 3):
            shutil.move(versions / str(number), served / str(number))
            wait_for(lambda n=number: answers[-1:] == [n])
        shutil.rmtree(served / "1")
        wait_for(
            lambda: (
                server.rest.get(f"/v1/models/{NAME}/versions/1").status_code
                == 404
            )
        )
        seen = len(answers)
        wait_for(lambda: len(answers) > seen + 10)
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert set(answers) == {1, 2, 3}


def test_a_broken_version_leaves_the_one_before(exported, raw, tmp_path):
    shutil.copytree(exported / "1", tmp_path / "1")
    with running(tmp_path) as server:
        (tmp_path / "2").mkdir()
        (tmp_path / "2" / "saved_model.pb").write_bytes(b"no model")

        wait_for(lambda: states(server) == {2: "END", 1: "AVAILABLE"})
        response = server.predictions.Predict(predict_request(raw))
        assert response.model_spec.version.value == 1
        server.process.send_signal(signal.SIGINT)

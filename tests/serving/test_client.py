import contextlib
import http.server
import threading
import time

import numpy as np
import polars as pl
import pytest
import tensorflow as tf
from local_server import NAME, ROWS, running

from m2m_tf import files
from m2m_tf.export import CONTRACT_FILE
from m2m_tf.serving.client import Client, RequestError, ServerUnavailable
from m2m_tf.serving.model_store import LoadedModel
from m2m_tf.signatures import default_values


@pytest.fixture(params=["rest", "grpc"])
def client(server, request):
    with Client(server.addresses[request.param], NAME) as one:
        yield one


def columns(raw):
    return {
        name: values.tolist() if values.dtype != object else list(values)
        for name, values in raw.items()
    }


def check(told, expected):
    assert told.columns == sorted(expected)  # The same over REST and gRPC.
    for name, values in expected.items():
        np.testing.assert_allclose(
            told[name].to_numpy(), values, rtol=1e-5, atol=1e-6
        )


def test_dict_table_and_rows_give_the_same(client, raw, expected):
    given = columns(raw)
    check(client.predict(given), expected)
    check(client.predict(pl.DataFrame(given)), expected)
    rows = [
        dict(zip(given, values, strict=True))
        for values in zip(*given.values(), strict=True)
    ]
    check(client.predict(rows), expected)


def test_many_rows_go_in_several_requests(client, raw, expected, monkeypatch):
    monkeypatch.setattr("m2m_tf.serving.client.ROWS_PER_REQUEST", 3)
    check(client.predict(columns(raw)), expected)


def test_what_is_left_out_has_its_default(client, clinic_data, raw, exported):
    defaults = default_values(clinic_data.spec)
    short = {k: x for k, x in columns(raw).items() if k not in defaults}
    filled = dict(raw)
    for name, value in defaults.items():
        kind = object if value.dtype.kind == "S" else value.dtype
        filled[name] = np.stack([value.astype(kind)] * ROWS)
    told = LoadedModel(exported / "1").run("predict", filled)
    check(client.predict(short), {k: x[:, 0] for k, x in told.items()})


def test_other_signatures(client, raw, exported):
    told = client.predict(columns(raw), "explain")
    expected = LoadedModel(exported / "1").run("explain", raw)
    for name, values in expected.items():
        np.testing.assert_allclose(
            np.array(told[name].to_list()), values, rtol=1e-5, atol=1e-6
        )
    inputs = client.inputs("predict_all_scenarios")
    blank = {
        name: np.zeros((2, *spec.shape[1:]), spec.dtype.as_numpy_dtype).tolist()
        for name, spec in inputs.items()
    }
    told = client.predict(
        blank | {name: ["", ""] for name in blank if "town" in name},
        "predict_all_scenarios",
    )
    assert told["scenario"].to_list()[0] == ["booked", "video", "walk_in"]
    assert len(told["fees"][0]) == 3


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x: x.pop("cutoff"), "Input 'cutoff' is missing"),
        (lambda x: x.update(weather=[1.0] * ROWS), "weather"),
        (lambda x: x.update(cutoff=["a"] * ROWS), "'cutoff' must be int64"),
        (lambda x: x.update(cutoff=[1]), "as many rows each.*'cutoff': 1"),
        (lambda x: x.clear(), "no row"),
        (
            lambda x: x.update(cutoff=np.array(x["cutoff"]) + 0.5),
            "'cutoff' must be int64.*received",
        ),
        (
            lambda x: x.update(days_observed=np.full(ROWS, np.nan)),
            "'days_observed' must be int64.*received nan",
        ),
        (
            lambda x: x.update(cutoff=np.full(ROWS, "NaT", "datetime64[D]")),
            "a date is missing",
        ),
        (
            lambda x: x.update(profile_beds=[1.0]),
            "as many rows.*'profile_beds'",
        ),
        (
            lambda x: x.update(
                behavior_sequence=(
                    np.nan * np.array(x["behavior_sequence"])
                ).tolist()
            ),
            "behavior_sequence",
        ),
    ],
)
def test_refused_rows_say_what_is_wrong(client, raw, change, message):
    given = columns(raw)
    change(given)
    with pytest.raises(RequestError, match=message):
        client.predict(given)


@pytest.mark.parametrize("unit", ["D", "us", "ns"])
def test_dates_are_told_as_days(client, raw, unit):
    given = columns(raw)
    days = np.array(given["cutoff"]).astype("datetime64[D]")
    expected = client.predict(given)
    told = client.predict(
        given | {"cutoff": days.astype(f"datetime64[{unit}]")}
    )
    assert told.equals(expected)
    assert client.predict(given | {"cutoff": days.tolist()}).equals(expected)


def test_what_a_new_version_takes_is_learned_anew(client, raw, expected):
    # As if the client had been made before the version that answers.
    specs = client.inputs("predict")
    for column, spec in (
        ("town_2", specs["cutoff"]),
        ("known_future", tf.TensorSpec((None, 3, 1), "float32")),
    ):
        client._specs = {"predict": specs | {column: spec}}
        short = {k: x for k, x in columns(raw).items() if k != column}
        if "known_future" in column:
            told = client.predict(short)
            assert told.columns == sorted(expected)
        else:
            check(client.predict(short), expected)


class Lengths(tf.Module):
    """A model of one output, which TF Serving's REST answers do not name."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
    def predict(self, text):
        return {"length": tf.cast(tf.strings.length(text), "float32")[:, None]}


def test_one_output_has_its_name_and_bytes_are_whole(tmp_path):
    module, version = Lengths(), tmp_path / "1"
    tf.saved_model.save(module, version, {"predict": module.predict})
    (version / CONTRACT_FILE).parent.mkdir()
    signatures = {"predict": {"method": "tensorflow/serving/predict"}}
    contract = {"signatures": signatures, "inputs": {}}
    files.write_json(version / CONTRACT_FILE, contract)
    with running(tmp_path) as server:
        for address in server.addresses.values():
            with Client(address, NAME) as one:
                told = one.predict({"text": [b"a\0\0", "é", "", None]})
            assert told.to_dict(as_series=False) == {"length": [3, 2, 0, 0]}


def test_unknown_names_are_refused_at_once(server, client, raw):
    with pytest.raises(RequestError, match="one of .*predict"):
        client.predict(columns(raw), "guess")
    for address in server.addresses.values():
        with Client(address, "other") as other:
            with pytest.raises(RequestError, match="'other'"):
                other.inputs()
        with Client(address, NAME, version=9) as other:
            with pytest.raises(RequestError, match="no version 9"):
                other.inputs()
    with pytest.raises(ValueError, match="'ftp://x'"):
        Client("ftp://x", NAME)


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_nobody_there_is_said_within_the_deadline(kind):
    with Client(f"{kind}://127.0.0.1:9", NAME, seconds=1) as client:
        with pytest.raises(ServerUnavailable, match="no answer within 1 s"):
            client.inputs()


@contextlib.contextmanager
def answering(write):
    """Address of a server that answers each GET by `write(file)`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                write(self.wfile)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_answer_in_drips_is_not_waited_for():
    def drip(file):
        for _ in range(100):
            file.write(b" ")
            time.sleep(0.1)

    with answering(drip) as address, Client(address, NAME, seconds=1) as client:
        started = time.monotonic()
        with pytest.raises(ServerUnavailable, match="no answer within 1 s"):
            client.inputs()
        assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "body, message",
    [
        (b"<html>Log in</html>", "answers no JSON.*Log in"),
        (b"[]", "no metadata.signature_def"),
        (b'{"metadata": {}}', "no metadata.signature_def"),
    ],
)
def test_another_server_s_answer_is_said(body, message):
    with answering(lambda file: file.write(body)) as address:
        with Client(address, NAME) as client:
            with pytest.raises(RequestError, match=message):
                client.inputs()


def test_all_requests_of_a_call_have_one_deadline(client, raw, monkeypatch):
    monkeypatch.setattr("m2m_tf.serving.client.ROWS_PER_REQUEST", 1)
    client.inputs()
    ask = client._transport.predict
    left = []

    def slow(*arguments, seconds):
        left.append(seconds)
        time.sleep(0.2)
        return ask(*arguments, seconds=seconds)

    monkeypatch.setattr(client._transport, "predict", slow)
    client.predict(columns(raw))
    assert len(left) == ROWS
    assert all(a - b >= 0.2 for a, b in zip(left, left[1:]))


def test_examples_are_asked_for_by_name(client):
    with pytest.raises(RequestError, match="takes .'examples'"):
        client.predict({"scenario": ["walk_in"]}, "serving_default")


def test_a_server_that_starts_late_is_waited_for(exported, raw, free_ports):
    rest, rpc = free_ports
    told = []

    def ask(address):
        with Client(address, NAME, seconds=90) as client:
            told.append(client.predict(columns(raw)))

    threads = [
        threading.Thread(target=ask, args=(address,))
        for address in (f"http://127.0.0.1:{rest}", f"grpc://127.0.0.1:{rpc}")
    ]
    for thread in threads:
        thread.start()
    with running(exported, "--rest-port", str(rest), "--grpc-port", str(rpc)):
        for thread in threads:
            thread.join()
    assert len(told) == 2 and told[0].height == ROWS

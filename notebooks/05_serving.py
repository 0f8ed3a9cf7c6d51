# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5. Export a model, serve it, and ask it
#
# **You learn** what an exported model holds, to serve it on your own machine
# with TF Serving's API, to ask it over REST and gRPC, for one scenario or all
# of them, and to score whole tables without a server.
#
# **Time:** about a minute on 2 idle cores. **Needs:** `make .venv/installed`
# done once; no network. Files go to `work/`, beside where it runs.

# %%
import os
import pathlib
import shutil

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # Fewer notices of TensorFlow's.

import atexit
import contextlib
import dataclasses
import io
import json
import re
import subprocess
import sys
import time

import httpx
import matplotlib.pyplot as plt
import numpy as np
import polars as pl
import tensorflow as tf

import m2m_tf
from m2m_tf.data import schema, windows
from m2m_tf.data.sources import simulator
from m2m_tf.plots import COLOURS
from m2m_tf.serving.batch_scoring import score_tables
from m2m_tf.serving.client import Client, RequestError
from m2m_tf.training import load_model

pl.Config.set_tbl_rows(20)
tf.get_logger().setLevel("ERROR")
plt.rcParams["figure.constrained_layout.use"] = True
WORK = pathlib.Path("work/05_serving")
shutil.rmtree(WORK, ignore_errors=True)

# %% [markdown]
# ## A model to serve
#
# Two epochs on 400 simulated advertisers: enough to be asked, not to be
# believed.

# %%
spec_path = simulator.write_tables(WORK / "tables", advertisers=400, days=140)
spec = m2m_tf.DatasetSpec.load(spec_path)
data = m2m_tf.ForecastData.prepare(spec, WORK / "records")
training = dataclasses.replace(
    m2m_tf.TRAINING_PRESETS["small"], epochs=2, members=1
)
with contextlib.redirect_stdout(io.StringIO()):  # Keras' bars.
    m2m_tf.train(
        data, m2m_tf.MODEL_PRESETS["small"], training, WORK / "training"
    )
model = load_model(WORK / "training")
version = m2m_tf.export_model(model, data.preprocessor, WORK / "advertisers")
print(
    *sorted(str(p.relative_to(version)) for p in version.rglob("*")), sep="\n"
)

# %% [markdown]
# `export_model` writes the next version, whole or not at all. In a run,
# `m2m-tf push` does it, and only if no task × scenario is worse than a naive
# forecast or the version before by more than a tolerance.
#
# ## The contract
#
# The model takes *raw* values: discretisation and vocabularies are inside.
# `m2m_contract.json` says all that a caller must know: names, shapes, dtypes,
# what stands for a value that is not known (`default`), and the order of
# columns and scenarios.

# %%
contract = json.loads((version / "assets.extra/m2m_contract.json").read_text())
print("scenarios:", *contract["scenarios"])
for name, columns in contract["sequence_columns"].items():
    print(f"{name}:", *columns)
pl.DataFrame(
    [
        {
            "input": name,
            "shape": str(tensor["shape"]),
            "dtype": tensor["dtype"],
            "has a default": "default" in tensor,
        }
        for name, tensor in contract["inputs"].items()
    ]
)

# %%
pl.DataFrame(
    [
        {
            "signature": name,
            "method": told["method"].split("/")[-1],
            "inputs": len(told["inputs"]),
            "outputs": len(told["outputs"]),
        }
        for name, told in contract["signatures"].items()
    ]
).sort("signature")

# %% [markdown]
# ## A server
#
# `m2m-tf serve` answers as TF Serving does, for laptops and tests; production
# uses TF Serving itself (`deploy/`). Here the command runs as a process of its
# own, on free ports, and we wait a minute at most until it says its addresses.

# %%
log = WORK / "server.log"
command = [sys.executable, "-m", "pipelines.cli", "serve"]  # m2m-tf serve
command += [str(WORK / "advertisers"), "--rest-port=0", "--grpc-port=0"]
with log.open("w") as output:
    server = subprocess.Popen(command, stdout=output, stderr=output)
atexit.register(server.terminate)  # Should a cell fail before the last one.

deadline = time.monotonic() + 120
while not (found := re.search(r"serving .*", log.read_text())):
    if server.poll() is not None or time.monotonic() > deadline:
        raise RuntimeError(f"The server did not start:\n{log.read_text()}")
    time.sleep(0.2)
print(found.group())
rest, grpc = re.search(
    r"(http://[\d.:]+)/.*gRPC ([\d.:]+)", log.read_text()
).groups()

# %% [markdown]
# ## Asked with the client
#
# A table in, a table out, by REST or gRPC. Attributes are strings and numbers
# as in your tables. The rows here are four test samples.

# %%
raw = next(data.raw("test", 4).as_numpy_iterator())
rows = {name: raw[name] for name in schema.raw_features(spec)}
answers = {}
for address in (rest, f"grpc://{grpc}"):
    with Client(address, "advertisers") as client:
        answers[address] = client.predict(rows)
over_rest, over_grpc = answers.values()
for name in over_rest.columns:
    np.testing.assert_allclose(over_rest[name], over_grpc[name], rtol=1e-5)
over_rest.select("click", "click_median", "click_lower", "click_upper")

# %% [markdown]
# `click` is the mean, `_lower` and `_upper` bound the 80 % interval. The same
# numbers as the model gives in Python:

# %%
outputs = m2m_tf.forecast.task_forecasts(
    model(data.preprocessor(rows))["click"],
    whole=True,
)
np.testing.assert_allclose(over_rest["click"], outputs["mean"][:, 0], rtol=1e-4)
np.ravel(outputs["mean"])

# %% [markdown]
# ## Asked with plain JSON
#
# Any language can do this. A row is an object of named inputs. Here every one
# must be there, as in TF Serving: for what is not known, send the contract's
# default (`Client` does so by itself, and a serialized `tf.Example` to the
# signature `serving_default` may leave it out). A default of null is a number
# that is not known: the word NaN, which TF Serving reads though JSON has none.
# The file that is written here is what `curl` would send.

# %%
row = {
    name: tensor["default"]
    if "default" in tensor
    else np.asarray(rows[name][0]).tolist()
    for name, tensor in contract["inputs"].items()
}
row |= {name: float("nan") for name, value in row.items() if value is None}
row["scenario"] = rows["scenario"][0].decode()
request = {"signature_name": "predict", "instances": [row]}
(WORK / "request.json").write_text(json.dumps(request))
url = f"{rest}/v1/models/advertisers"
print(f"curl {url}:predict -d @{WORK / 'request.json'}")
answer = httpx.post(
    f"{url}:predict", content=(WORK / "request.json").read_bytes()
)
answer.raise_for_status()
(forecast,) = answer.json()["predictions"]
{name: forecast[name] for name in sorted(forecast) if "click" in name}

# %% [markdown]
# Its attributes were left unknown, so the forecast is another one than above.
# What the server knows of itself:

# %%
print(json.dumps(httpx.get(url).json(), indent=1))

# %% [markdown]
# What is wrong with a request is said by input. These are the usual mistakes:

# %%
with Client(rest, "advertisers") as client:
    mistakes = {
        "no cutoff": {k: x for k, x in rows.items() if k != "cutoff"},
        "30 days instead of 40": rows
        | {"behavior_sequence": rows["behavior_sequence"][:, :30]},
        "a misspelt input": rows
        | {"profile_categorie": rows["profile_category"]},
        "not a number": rows
        | {"performance_sequence": rows["performance_sequence"] * np.nan},
    }
    for mistake, wrong in mistakes.items():
        try:
            client.predict(wrong)
        except RequestError as error:
            print(f"{mistake}:\n   {error}\n")

# %% [markdown]
# ## Every scenario at once
#
# `predict_all_scenarios` takes an advertiser's history in every scenario, zeros
# where there was none, in the order of the contract. Totals over scenarios and
# the scenarios' attributes are the model's own affair. This is what an
# allocation of budgets would ask.

# %%
record = max(
    data.records.as_numpy_iterator(),
    key=lambda record: len(record[schema.SCENARIO]),
)
cutoff = spec.num_days - 1
days = slice(cutoff + 1 - spec.lookback, cutoff + 1)
values = np.zeros(
    (len(contract["scenarios"]), spec.lookback, len(spec.value_columns)),
    "float32",
)
for name, series in zip(record[schema.SCENARIO], record[schema.VALUES]):
    if name.decode() in contract["scenarios"]:
        values[contract["scenarios"].index(name.decode())] = series[days]
split = len(spec.behavior)
date = windows.date_of(spec, cutoff)
advertiser = {
    "cutoff": (date - windows.EPOCH).days,
    "behavior_sequence": values[..., :split],
    "performance_sequence": values[..., split:],
} | {
    name: record[name]
    for name in record
    if name.startswith(schema.PROFILE_PREFIX)
}
with Client(f"grpc://{grpc}", "advertisers") as client:
    told = client.predict([advertiser], "predict_all_scenarios")
told.select("scenario", "click", "click_lower", "click_upper").explode(pl.all())

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
units = {"click": "clicks", "expenditure": "expenditure (currency units)"}
for axis, (task, unit) in zip(axes, units.items()):
    mean, median, lower, upper = (
        np.array(told[f"{task}{part}"][0])
        for part in ("", "_median", "_lower", "_upper")
    )
    places = np.arange(len(mean))
    axis.hlines(
        places,
        lower,
        upper,
        color=COLOURS[0],
        linewidth=3,
        label="80 % interval",
    )
    axis.plot(median, places, "o", color=COLOURS[0], label="median")
    axis.plot(mean, places, "D", color=COLOURS[1], label="mean")
    axis.set_yticks(places, told["scenario"][0])
    axis.set_ylim(-0.6, len(mean) - 0.4)
    axis.set_xlabel(f"{unit}, next {spec.horizon} days")
    axis.set_xscale("symlog", linthresh=1)
    axis.set_xlim(left=-0.1)
    axis.grid(axis="x", color="#dddddd")
axes[0].invert_yaxis()
handles, labels = axes[0].get_legend_handles_labels()
figure.legend(
    handles, labels, loc="outside lower center", ncols=3, frameon=False
)
figure.suptitle(
    f"Advertiser {record[schema.ENTITY].decode()}, forecast after {date}"
)
plt.show()

# %% [markdown]
# ## Why
#
# `explain` takes what `predict` takes and tells the attention of each task on
# each expert, and the scenario knowledge ([notebook 4](04_what_meta_learned.py)
# draws them).

# %%
with Client(rest, "advertisers") as client:
    why = client.predict(rows, "explain")
np.round(np.array(why["expert_attention"].to_list()[0]), 2)

# %% [markdown]
# ## The server ends

# %%
server.terminate()
print("exit status:", server.wait(timeout=60))

# %% [markdown]
# ## Whole tables without a server
#
# `m2m-tf predict` does the same: every advertiser in every scenario at one
# cutoff, chunk by chunk, so that memory does not grow with the tables. What
# training has never seen is counted, and forecast as unknown.

# %%
summary = score_tables(
    WORK / "advertisers", spec, spec.end, WORK / "next_week.parquet"
)
print(summary)
pl.read_parquet(WORK / "next_week.parquet").select(
    "advertiser",
    "scenario",
    "cutoff",
    "click",
    "click_median",
    "click_lower",
    "click_upper",
).head()

# %% [markdown]
# ## What this does not show
#
# Speed: `docs/results/serving.md` has what was measured, and how. Who may ask:
# neither `m2m-tf serve` nor TF Serving asks for credentials, so keep them
# behind something that does.

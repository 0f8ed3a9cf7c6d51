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
# # 1. Data contract: from three tables to samples
#
# **You learn** what the tables must look like, what validation says when they
# do not, which days a model sees and which it predicts, how sparse such data
# is, and what one sample holds.
#
# **Time:** about half a minute on 2 idle cores. **Needs:**
# `make .venv/installed` done once; no network. Files go to `work/`, beside
# where it runs.

# %%
import dataclasses
import os
import pathlib
import shutil

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # Fewer notices of TensorFlow's.

import matplotlib.pyplot as plt
import numpy as np
import polars as pl

import m2m_tf
from m2m_tf.data import schema, validation, windows
from m2m_tf.data.sources import simulator
from m2m_tf.plots import COLOURS

plt.rcParams["figure.constrained_layout.use"] = True
WORK = pathlib.Path("work/01_data_contract")
shutil.rmtree(WORK, ignore_errors=True)

# %% [markdown]
# ## Three tables and a spec
#
# The data here is simulated: 500 advertisers in six marketing scenarios over 24
# weeks. Yours may be shops × channels or clinics × kinds of visit; no word of
# advertising is built in.

# %%
spec_path = simulator.write_tables(WORK / "tables", advertisers=500, days=168)
pl.read_parquet(WORK / "tables/panel.parquet").head(4)

# %% [markdown]
# **panel**: a row is one entity in one scenario on one day. Days without a row
# count as zeros, so a quiet day costs nothing.

# %%
pl.read_parquet(WORK / "tables/profile.parquet").head(3)

# %% [markdown]
# **profile**: a row per entity. **scenarios**: a row per scenario. A scenario's
# *attributes* are what makes a new one predictable at all: its name is unknown
# to the model, that it is a feed paid by view is not.

# %%
pl.read_parquet(WORK / "tables/scenarios.parquet")

# %% [markdown]
# The **spec** says which column plays which role:

# %%
print(spec_path.read_text())

# %%
spec = m2m_tf.DatasetSpec.load(spec_path)
print(validation.validate_tables(spec))

# %% [markdown]
# ## What validation says to broken tables
#
# All problems at once, each with file, column, number of rows and an example.
# Here four common ones are made on purpose.

# %%
broken = WORK / "broken"
shutil.copytree(WORK / "tables", broken)
rows = pl.read_parquet(broken / "panel.parquet")
rows = pl.concat(
    [
        rows.with_columns(
            gmv=pl.when(pl.col("gmv") > 3000).then(-1).otherwise("gmv"),
            logins=pl.when(pl.col("logins") > 9).then(None).otherwise("logins"),
        ),
        rows.head(3),  # The same keys once more.
        rows.head(2).with_columns(scenario=pl.lit("tv")),
    ]
)
rows.write_parquet(broken / "panel.parquet")
try:
    validation.validate_tables(m2m_tf.DatasetSpec.load(broken / "spec.yaml"))
except validation.DataValidationError as error:
    print(error)

# %% [markdown]
# A wrong spec is refused before any table is read:

# %%
text = spec_path.read_text().replace("stride:", "strides:")
(broken / "spec.yaml").write_text(text.replace("lookback: 40", "lookback: 0"))
try:
    m2m_tf.DatasetSpec.load(broken / "spec.yaml")
except m2m_tf.config.ConfigError as error:
    print(error)

# %% [markdown]
# ## Which days are seen, which are predicted
#
# A *cutoff* is the last day seen. Its inputs are the `lookback` days up to it,
# its labels the totals of the `horizon` days after it. Cutoffs are `stride`
# days apart. Between the label days of two splits lie at least `horizon` days,
# so that no label week of one split touches one of another. Inputs may reach
# back into an earlier split: what has been seen has been seen.

# %%
splits = windows.make_splits(spec)
figure, axis = plt.subplots(figsize=(9, 4.2))
places = {}
for index, name in enumerate(windows.SPLIT_NAMES):
    for cutoff in getattr(splits, name):
        places[cutoff] = row = len(places)
        first = cutoff - spec.lookback + 1
        axis.barh(row, spec.lookback, left=first, color="#d0d0d0", height=0.8)
        axis.barh(
            row,
            spec.horizon,
            left=cutoff + 1,
            color=COLOURS[index],
            height=0.8,
            label=f"label days: {name}" if row == places[cutoff] else None,
        )
handles, labels = axis.get_legend_handles_labels()
unique = dict(zip(labels, handles))
grey = plt.Rectangle((0, 0), 1, 1, color="#d0d0d0")
axis.legend(
    [grey, *unique.values()],
    ["days seen (lookback)", *unique],
    loc="lower left",
    frameon=False,
)
last = windows.last_fit_day(spec)
axis.axvline(last + 1, color="black", linestyle=":")
axis.annotate(
    "nothing fitted\nsees a later day",
    (last + 1, 2),
    xytext=(5, 0),
    textcoords="offset points",
)
axis.invert_yaxis()
ticks = np.arange(0, spec.num_days, 28)
axis.set_xticks(ticks, [f"{windows.date_of(spec, day):%d %b}" for day in ticks])
axis.set_xlabel(f"day ({spec.start:%Y}); a tick every four weeks")
axis.set_yticks(range(0, len(places), 2))
axis.set_ylabel("cutoff, in order of time")
axis.set_title("Windows of the three splits, a row per cutoff")
plt.show()

# %% [markdown]
# Fewer days than one window, or a split without a cutoff, is an error that says
# how many there are and how many are needed:

# %%
try:
    windows.make_splits(
        dataclasses.replace(spec, end=windows.date_of(spec, 60))
    )
except windows.SplitError as error:
    print(error)

# %% [markdown]
# ## How sparse, and how unequal
#
# One scenario has nearly all the rows, and most advertisers are in few
# scenarios. That is what M2M is for: to learn of minor scenarios from major
# ones. `star_shop` opens late in the training days and `live` after them.

# %%
data = m2m_tf.ForecastData.prepare(spec, WORK / "records")
data.preprocessor.statistics.num_samples

# %% [markdown]
# `activity` in the spec keeps what was active in the lookback; the rest would
# be zeros after zeros. Which samples that leaves, and how many of their labels
# are zero:

# %%
batches = list(data.raw("train", 1024).as_numpy_iterator())
scenario = schema.as_text(
    np.concatenate([raw[schema.SCENARIO] for raw in batches])
)
labels = np.concatenate([raw[windows.LABELS] for raw in batches])
names, counts = np.unique(scenario, return_counts=True)
order = np.argsort(-counts)
names, counts = names[order], counts[order]
zeros = np.array([(labels[scenario == name] == 0).mean(0) for name in names])

figure, (left, right) = plt.subplots(
    1, 2, figsize=(9.5, 3.2), sharey=True, width_ratios=[1, 1.3]
)
left.barh(names, counts, color=COLOURS[0])
for row, count in enumerate(counts):
    left.text(count * 1.1, row, f"{count / counts.sum():.1%}", va="center")
left.set_xscale("log")
left.set_xlim(1, counts.max() * 8)
left.set_xlabel("training samples (logarithmic)")
left.set_title("Share of each scenario")
image = right.imshow(zeros, vmin=0, vmax=1, cmap="cividis", aspect="auto")
for (row, column), value in np.ndenumerate(zeros):
    right.text(
        column,
        row,
        f"{value:.0%}",
        ha="center",
        va="center",
        color="black" if value > 0.5 else "white",
    )
right.set_xticks(range(len(spec.tasks)), spec.task_names, rotation=20)
right.set_title("Labels that are zero")
figure.colorbar(image, ax=right, label="share of the samples")
plt.show()

# %% [markdown]
# ## From a series to a sample
#
# On disk an advertiser is one record: its whole history,
# `[scenario, day, column]`. A day is stored once, not once per window. Samples
# are cut when the records are read.

# %%
record = max(
    data.records.as_numpy_iterator(),
    key=lambda record: record[schema.VALUES][..., -1].sum(),
)
print("scenarios:", *schema.as_text(record[schema.SCENARIO]))
record[schema.VALUES].shape

# %%
column = spec.value_columns.index("click")
cutoff = splits.test[-1]
daily = record[schema.VALUES][0, :, column]
days = np.arange(cutoff - 55, cutoff + spec.horizon + 1)
figure, axis = plt.subplots(figsize=(9, 3))
axis.bar(days, daily[days], color="#808080", width=0.8)
axis.axvspan(
    cutoff - spec.lookback + 0.5,
    cutoff + 0.5,
    color=COLOURS[4],
    alpha=0.25,
    label=f"seen: {spec.lookback} days",
)
ahead = slice(cutoff + 1, cutoff + 1 + spec.horizon)
axis.axvspan(
    cutoff + 0.5,
    cutoff + spec.horizon + 0.5,
    color=COLOURS[1],
    alpha=0.35,
    label=f"label: total of {spec.horizon} days = {daily[ahead].sum():,.0f}",
)
axis.axvline(cutoff + 0.5, color="black", linewidth=1)
axis.set_xlim(days[0] - 1, days[-1] + 1)
ticks = np.arange(cutoff - 49, cutoff + 8, 7)
axis.set_xticks(ticks, [f"{windows.date_of(spec, day):%d %b}" for day in ticks])
axis.set_xlabel("day")
axis.set_ylabel("clicks per day")
axis.set_title(
    f"Advertiser {record[schema.ENTITY].decode()} in "
    f"{record[schema.SCENARIO][0].decode()}: one sample"
)
figure.legend(loc="outside lower center", ncols=2, frameon=False)
plt.show()

# %% [markdown]
# *Raw features* are what a caller of the served model sends. *Model inputs* are
# what the preprocessor makes of them: ids of quantile buckets for the
# sequences, ids of categories, and standardised dense features. The same object
# does it in training and inside the exported model.

# %%
raw = next(data.raw("test", 4).as_numpy_iterator())
print("raw features")
for name in schema.raw_features(spec):
    print(f"  {name:<24} {raw[name].dtype!s:<8} {raw[name].shape[1:]}")
inputs = data.preprocessor(raw)
print("model inputs")
for name, tensor in inputs.items():
    print(f"  {name:<24} {tensor.dtype.name:<8} {tuple(tensor.shape[1:])}")

# %% [markdown]
# ## The future stays out
#
# All rows after the last test cutoff are multiplied by 100. Labels change,
# inputs do not. (The tests of the library do this for every feature and split.)

# %%
changed = WORK / "changed"
shutil.copytree(WORK / "tables", changed)
later = pl.col("date") > windows.date_of(spec, cutoff)
pl.read_parquet(changed / "panel.parquet").with_columns(
    pl.when(later).then(pl.col(name) * 100).otherwise(name)
    for name in spec.value_columns
).write_parquet(changed / "panel.parquet")
other = m2m_tf.ForecastData.prepare(
    m2m_tf.DatasetSpec.load(changed / "spec.yaml"), changed / "records"
)
for ours, theirs in zip(
    data.raw("test", 1024).as_numpy_iterator(),
    other.raw("test", 1024).as_numpy_iterator(),
):
    for name in schema.raw_features(spec):
        assert np.array_equal(ours[name], theirs[name]), name
    assert not np.array_equal(ours[windows.LABELS], theirs[windows.LABELS])
print("inputs are the same, labels are not")

# %% [markdown]
# ## What this does not show
#
# Validation finds tables that break the contract, not tables that mislead: a
# column that is filled in later than its day (returns, attributed sales) passes
# and leaks. Whether a `known_future` column was really known is for you to
# know, too. [Notebook 6](06_own_tables.py) builds the tables from a raw event
# log.

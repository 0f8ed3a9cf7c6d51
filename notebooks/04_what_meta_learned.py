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
# # 4. What the meta unit has learned
#
# **You learn** to look into a trained M2M: which experts each task attends to
# in each scenario, where scenarios lie in the space of scenario knowledge, and
# how far apart the kernels are that the meta unit generates for them.
#
# **Time:** about a minute on 2 idle cores. **Needs:** `make .venv/installed`
# done once; no network. Files go to `work/`, beside where it runs.

# %%
import os
import pathlib
import shutil

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # Fewer notices of TensorFlow's.

import contextlib
import dataclasses
import io

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from IPython.display import Image
from scipy.cluster import hierarchy
from scipy.spatial.distance import pdist, squareform

import m2m_tf
from m2m_tf import plots
from m2m_tf.data import panel, schema
from m2m_tf.data.sources import simulator
from m2m_tf.models import explanation
from m2m_tf.plots import COLOURS
from m2m_tf.training import load_model

plt.rcParams["figure.constrained_layout.use"] = True
WORK = pathlib.Path("work/04_what_meta_learned")
shutil.rmtree(WORK, ignore_errors=True)

# %% [markdown]
# ## A model to look into
#
# Simulated advertisers again, since there we know what is to be learned: how a
# scenario turns behaviour into results follows from its attributes (placement,
# pricing, intent, visibility, brand focus). Without dropout, so that attention
# settles within a few epochs.

# %%
spec_path = simulator.write_tables(WORK / "tables", advertisers=1000, days=168)
spec = m2m_tf.DatasetSpec.load(spec_path)
data = m2m_tf.ForecastData.prepare(spec, WORK / "records")
settings = dataclasses.replace(m2m_tf.MODEL_PRESETS["small"], dropout=0.0)
training = dataclasses.replace(
    m2m_tf.TRAINING_PRESETS["small"], epochs=5, members=1
)
with contextlib.redirect_stdout(io.StringIO()):  # Keras' bars.
    history = m2m_tf.train(data, settings, training, WORK / "training")
model = load_model(WORK / "training")
pl.DataFrame(history).select(
    "epoch", "loss", "val_loss", "val_overall_nmae", "seconds"
)

# %% [markdown]
# ## The same advertisers in every scenario
#
# Scenario knowledge is made of the scenario's attributes *and* the advertiser's
# profile (eq. 8), and scenarios have different advertisers. To see what the
# scenario does, each of 256 test advertisers is put into all six: its history
# stays, the scenario and its attributes change. `explanation(model)` tells
# attention (eq. 15) and knowledge; a served model tells the same by its
# signature `explain`.

# %%
explain = explanation(model)
scenarios = panel.read_scenarios(spec)
names = scenarios[spec.scenario].to_list()
raw = next(data.raw("test", 256).as_numpy_iterator())
raw = {name: raw[name] for name in schema.raw_features(spec)}
rows = len(raw[schema.SCENARIO])
attention, knowledge = [], []
for row in scenarios.iter_rows(named=True):
    moved = raw | {schema.SCENARIO: np.full(rows, row[spec.scenario].encode())}
    for column in spec.scenario_columns.names:
        key = schema.SCENARIO_PREFIX + column
        value = row[column]
        value = value.encode() if isinstance(value, str) else value
        moved[key] = np.full(rows, value, raw[key].dtype)
    told = explain(data.preprocessor(moved), training=False)
    attention.append(told["expert_attention"].numpy())
    knowledge.append(told["scenario_knowledge"].numpy())
attention, knowledge = np.array(attention), np.array(knowledge)
print("attention [scenario, advertiser, task, expert]:", attention.shape)
print("knowledge [scenario, advertiser, d]:", knowledge.shape)

# %% [markdown]
# `live` opens after the training days: its name falls to the out-of-vocabulary
# row, its attributes are known from other scenarios.
#
# ## Attention on experts
#
# Each row adds up to 1. Equal numbers mean that the experts are used alike, as
# at the start of training.

# %%
shown = attention.mean(1).transpose(1, 0, 2)  # [task, scenario, expert]
plots.plot_expert_attention(
    shown, spec.task_names, names, WORK / "attention.png"
)
Image(WORK / "attention.png", width=860)

# %% [markdown]
# How much of the spread of attention is due to what? The standard deviation of
# the scores when one thing changes and the rest is averaged away:

# %%
pl.DataFrame(
    {
        "what changes": ["scenario", "advertiser", "task"],
        "spread of attention": [
            float(attention.mean((1, 2)).std(0).mean()),
            float(attention.mean((0, 2)).std(0).mean()),
            float(attention.mean((0, 1)).std(0).mean()),
        ],
    }
)

# %% [markdown]
# ## A map of scenarios
#
# The two directions in which knowledge varies most (principal components by
# NumPy's SVD). A small point is an advertiser in a scenario, a large one the
# scenario's mean.

# %%
flat = knowledge.reshape(-1, knowledge.shape[-1])
centre = flat.mean(0)
_, singular, directions = np.linalg.svd(flat - centre, full_matrices=False)
share = singular**2 / (singular**2).sum()
points = (knowledge - centre) @ directions[:2].T
markers = "os^DvP"

figure, axis = plt.subplots(figsize=(8, 4.6))
for index, name in enumerate(names):
    style = {"color": COLOURS[index], "marker": markers[index]}
    axis.scatter(*points[index].T, s=8, alpha=0.25, linewidths=0, **style)
    axis.scatter(
        *points[index].mean(0),
        s=130,
        edgecolors="black",
        zorder=3,
        label=name,
        **style,
    )
axis.set_xlabel(f"first component ({share[0]:.0%} of the variance)")
axis.set_ylabel(f"second component ({share[1]:.0%} of the variance)")
axis.set_title("Scenario knowledge of the same advertisers in six scenarios")
axis.grid(color="#dddddd")
axis.set_axisbelow(True)
figure.legend(loc="outside right center", frameon=False)
plt.show()

# %% [markdown]
# How far does a scenario move the knowledge of an advertiser, beside how far
# advertisers differ?

# %%
between = knowledge.mean(1).var(0).sum()
within = knowledge.var(1).mean(0).sum()
print(f"variance between scenarios: {between / (between + within):.0%}")
print(f"between advertisers of a scenario: {within / (between + within):.0%}")

# %% [markdown]
# ## Distances between generated kernels
#
# A meta unit turns knowledge into the kernel
# $W = \mathrm{reshape}(V\tilde S + v)$ (eq. 11). `MetaDense.generated_kernel`
# makes it. As the map from knowledge to kernel is linear, the kernel of a
# scenario's mean knowledge is the mean of its advertisers' kernels. The
# distance of two scenarios is the Frobenius norm of the difference of these,
# relative to the norm of $v$, which all scenarios share. Each task has a unit
# of its own (`share_meta_across_tasks: false`); shown is the tasks' mean.

# %%
mean_knowledge = knowledge.mean(1).astype("float32")
units = {
    "attention": model.get_layer("meta_attention").meta_unit.units,
    "tower, layer 1": model.get_layer("meta_tower").meta_units[0].units,
    "tower, layer 2": model.get_layer("meta_tower").meta_units[1].units,
}
distances = {}
for title, by_task in units.items():
    apart = []
    for unit in by_task:
        layer = unit.meta_layers[0]
        kernels = np.array(layer.generated_kernel(mean_knowledge))
        norms = pdist(kernels.reshape(len(names), -1))
        apart.append(norms / np.linalg.norm(layer.kernel_base))
    distances[title] = np.mean(apart, axis=0)

total = np.mean(list(distances.values()), axis=0)
links = hierarchy.linkage(total, "average")
order = hierarchy.leaves_list(links)
figure, axes = plt.subplots(
    1, 4, figsize=(11, 3.4), width_ratios=[1.1, 1, 1, 1]
)
hierarchy.dendrogram(
    links,
    labels=np.array(names),
    orientation="left",
    ax=axes[0],
    color_threshold=0,
    above_threshold_color="black",
)
axes[0].invert_yaxis()
axes[0].set_title("mean of the three")
axes[0].set_xlabel("distance (share of |v|)")
most = max(apart.max() for apart in distances.values())
ordered = [names[index] for index in order]
for axis, (title, apart) in zip(axes[1:], distances.items()):
    square = squareform(apart)[np.ix_(order, order)]
    image = axis.imshow(square, vmin=0, vmax=most, cmap="cividis")
    for (row, column), value in np.ndenumerate(square):
        if row != column:
            axis.text(
                column,
                row,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=7,
                color="black" if value > 0.55 * most else "white",
            )
    axis.set_title(title)
    axis.set_xticks(range(len(names)), ordered, rotation=90)
    axis.set_yticks(range(len(names)), [])
figure.colorbar(image, ax=axes[1:], label="distance (share of |v|)")
figure.suptitle("How far apart the generated kernels of scenarios are")
plt.show()

# %% [markdown]
# Do kernels lie apart where the attributes do? The simulator's attributes,
# standardised, against the kernels' mean distance, a point per pair of
# scenarios. Where r is near 0, names rather than attributes decide where a
# kernel lies, and the model has little to say of a scenario that it does not
# know by name.

# %%
attributes = scenarios.select(
    (pl.col("placement") == "search").cast(float).alias("search"),
    (pl.col("placement") == "feed").cast(float).alias("feed"),
    (pl.col("pricing") == "cpc").cast(float).alias("cpc"),
    *spec.scenario_columns.numeric,
).to_numpy()
attributes = (attributes - attributes.mean(0)) / attributes.std(0)
apart = pdist(attributes)
figure, axis = plt.subplots(figsize=(6, 3.2))
axis.scatter(apart, total, color=COLOURS[0])
axis.set_xlabel("distance of the attributes (standardised)")
axis.set_ylabel("distance of the kernels\n(share of |v|)")
axis.set_title(
    f"15 pairs of scenarios, r = {np.corrcoef(apart, total)[0, 1]:.2f}"
)
axis.grid(color="#dddddd")
axis.set_axisbelow(True)
plt.show()

# %% [markdown]
# ## What this does not show
#
# - That attention or kernels *cause* good forecasts: take them away and compare
#   ([notebook 3](03_baselines_and_ablations.py)).
# - Anything about the paper's own scenarios. One seed of a small model on
#   simulated advertisers is shown; another seed numbers experts otherwise and
#   moves the map.
# - The effect of `context_in_backbone`, on in the `small` preset: experts see
#   scenario attributes, too, so the meta unit is not the only way in which
#   scenarios differ here.

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
# # 2. M2M in ten lines, and a layer of your own in it
#
# **You learn** to build and train M2M with plain `compile` and `fit`, to read
# its graph, to put a layer of your own in place of one of its, and to compare
# the two on validation data.
#
# **Time:** about one and a half minutes on 2 idle cores. **Needs:**
# `make .venv/installed` done once; no network. Files go to `work/`, beside
# where it runs.

# %%
import os
import pathlib
import shutil

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # Fewer notices of TensorFlow's.

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import m2m_tf
from m2m_tf.data.sources import simulator
from m2m_tf.evaluation import evaluate_forecasts, format_table
from m2m_tf.evaluation_run import forecast_split
from m2m_tf.plots import COLOURS
from m2m_tf.training import compile_model

tf.get_logger().setLevel("ERROR")
plt.rcParams["figure.constrained_layout.use"] = True
WORK = pathlib.Path("work/02_custom_layer")
shutil.rmtree(WORK, ignore_errors=True)
spec_path = simulator.write_tables(WORK / "tables", advertisers=500, days=140)

# %% [markdown]
# ## M2M in ten lines
#
# From tables to a trained model. `joint_hurdle` fits the heads of the `small`
# preset, which tell a distribution beside the mean; `inverse_mean` in the spec
# makes `weights` put tasks of different units on one scale.

# %%
keras.utils.set_random_seed(1)
spec = m2m_tf.DatasetSpec.load(spec_path)
data = m2m_tf.ForecastData.prepare(spec, WORK / "records")
statistics = data.preprocessor.statistics
weights = data.preprocessor.task_weights()
inputs = data.preprocessor.model_inputs
settings = m2m_tf.MODEL_PRESETS["small"]
model = m2m_tf.build_model(inputs, settings, statistics.label_means)
units, limits = (
    data.preprocessor.label_units(),
    data.preprocessor.label_limits(),
)
loss = m2m_tf.joint_hurdle(weights, units, limits)
model.compile(keras.optimizers.Adam(2e-3), loss=loss, loss_weights=weights)
_ = model.fit(data.train(256), epochs=1, shuffle=False, verbose=2)
# %% [markdown]
# It is a plain functional Keras model. These are its layers, in the order in
# which data flows; from `expert_views` on they are the paper's (equations in
# the docstrings of `m2m_tf.layers`):

# %%
for layer in model.layers:
    if layer.weights:
        print(
            f"{layer.name:<32}{type(layer).__name__:<20}"
            f"{layer.count_params():>8,} weights"
        )

# %% [markdown]
# ## A layer of your own
#
# `MetaResidualTower` adds what a meta unit makes to what comes in (eq. 18):
# $L^{(j)} = \sigma(\mathrm{Meta}(L^{(j-1)}) + L^{(j-1)})$. Suppose that not
# every scenario needs the same correction. Ours lets scenario knowledge
# $\tilde S$ also say *how much* of it:
#
# $$L^{(j)} = \sigma(g^{(j)} \odot \mathrm{Meta}(L^{(j-1)}) + L^{(j-1)}),\qquad
# g^{(j)} = 2\,\mathrm{sigmoid}(U^{(j)} \tilde S)$$
#
# With $U = 0$ the gate is 1, which is M2M. Built in `build` from shapes alone
# and registered by name, the layer saves and loads as the library's own do.


# %%
@keras.saving.register_keras_serializable("my_research")
class GatedMetaTower(m2m_tf.layers.MetaResidualTower):
    """A meta tower whose corrections are gated by scenario knowledge."""

    def build(self, inputs_shape, scenario_knowledge_shape):
        super().build(inputs_shape, scenario_knowledge_shape)
        self.gates = []
        for index in range(self.num_layers):
            gate = keras.layers.Dense(
                inputs_shape[-1],
                activation="sigmoid",
                use_bias=False,
                kernel_initializer="zeros",
                kernel_regularizer=self.kernel_regularizer,
                dtype=self.dtype_policy,
                name=f"gate_{index}",
            )
            gate.build(scenario_knowledge_shape)
            self.gates.append(gate)

    def call(self, inputs, scenario_knowledge):
        hidden = inputs
        for gate, unit in zip(self.gates, self.meta_units):
            share = 2 * gate(scenario_knowledge)[:, None]
            change = share * unit(hidden, scenario_knowledge)
            hidden = keras.ops.leaky_relu(change + hidden)
        return hidden


# %% [markdown]
# ## Swapped in
#
# Keras can clone a functional model and ask, layer by layer, what to put in its
# place. Ours takes the same inputs and the same settings as the tower, so its
# config is the tower's. All other layers are made anew with their own settings;
# names, inputs and outputs of the graph stay.


# %%
def with_gated_tower(model):
    def replace(layer):
        cls = type(layer)
        if layer.name == "meta_tower":
            cls = GatedMetaTower
        return cls.from_config(layer.get_config())

    return keras.models.clone_model(model, clone_function=replace)


gated = with_gated_tower(model)
print(type(gated).__name__, type(gated.get_layer("meta_tower")).__name__)

# %% [markdown]
# A layer with *other* inputs changes the wiring, which cloning cannot do. Then
# copy the body of `m2m` in `m2m_tf/models/m2m.py`: it only calls
# `m2m_tf.models.backbone` and `m2m_tf.layers`, and `backbone.forecast_heads`
# ends any representation `[batch, tasks, width]`.
#
# ## Trained alike, compared on validation
#
# `compile_model` is what `m2m-tf train` compiles with: Adam with the paper's
# constants, the joint loss of the heads, and metrics of each task × scenario.
# M2M is trained from two seeds: what parts them is noise, and a difference
# between the models that is no larger shows nothing.

# %%
training = m2m_tf.TRAINING_PRESETS["small"]
batches, validation = data.train(256), data.validation(1024)
epochs, histories, models = 3, {}, {}
for name, seed in (("m2m", 1), ("m2m", 2), ("gated", 1)):
    keras.utils.set_random_seed(seed)
    network = m2m_tf.build_model(inputs, settings, statistics.label_means)
    if name == "gated":
        network = with_gated_tower(network)
    compile_model(network, data, training, len(batches) * epochs)
    fitted = network.fit(
        batches,
        validation_data=validation,
        epochs=epochs,
        shuffle=False,
        verbose=0,
    )
    histories[name, seed] = fitted.history
    models[name, seed] = network

# %%
shown = {
    "val_loss": "joint loss",
    "val_overall_poisson_deviance": "Poisson deviance",
}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
for axis, (metric, label) in zip(axes, shown.items()):
    for (name, seed), history in histories.items():
        axis.plot(
            range(1, epochs + 1),
            history[metric],
            color=COLOURS[0 if name == "m2m" else 1],
            marker="o" if name == "m2m" else "s",
            linestyle="-" if seed == 1 else "--",
            label=f"{name}, seed {seed}",
        )
    axis.set_xticks(range(1, epochs + 1))
    axis.set_xlabel("epoch")
    axis.set_ylabel(label)
    axis.grid(color="#dddddd")
handles, labels = axes[0].get_legend_handles_labels()
figure.legend(
    handles, labels, loc="outside lower center", ncols=3, frameon=False
)
figure.suptitle("Validation: M2M and M2M with a gated tower")
plt.show()

# %% [markdown]
# Scores in the units people ask for, beside naive forecasts. `forecast_split`
# runs every sample of a split through the model; the test split stays closed
# until the choice is made.

# %%
forecasts = {}
for (name, seed), network in models.items():
    told = forecast_split(data, network, "validation")
    forecasts[f"{name}, seed {seed}"] = told.forecasts["m2m"]
forecasts["last_week"] = told.forecasts["last_week"]
forecasts["history_mean"] = told.forecasts["history_mean"]
scores = evaluate_forecasts(
    told.y_true,
    forecasts,
    told.scenario,
    spec.task_names,
    data.preprocessor.scenario_names,
)
print(format_table(scores))

# %% [markdown]
# Deviance here is that of the tasks' own units, so spend and GMV rule the mean.
# Beyond a first look: more data, more epochs, several seeds of each, as
# `m2m-tf compare` does for the models in `m2m_tf.models.BUILDERS`, with
# intervals.
#
# What the gates have learned, from knowledge of validation samples:

# %%
network = models["gated", 1]
explainer = m2m_tf.models.explanation(network)
knowledge = explainer.predict(validation, verbose=0)["scenario_knowledge"]
tower = network.get_layer("meta_tower")
figure, axis = plt.subplots(figsize=(6, 3))
for index, gate in enumerate(tower.gates):
    axis.hist(
        np.ravel(2 * gate(knowledge)),
        bins=40,
        histtype="step",
        linestyle="-" if index == 0 else "--",
        color=COLOURS[index],
        label=f"residual layer {index + 1}",
    )
axis.axvline(1, color="black", linestyle=":", label="no gate (M2M)")
axis.set_xlabel("gate (factor on the meta unit's correction)")
axis.set_ylabel("units × samples")
axis.legend(frameon=False)
axis.set_title("Gates of the swapped tower, seed 1")
plt.show()

# %% [markdown]
# ## Saved, loaded, exported
#
# With its class registered, the model is as good as any of the library's: it
# saves, loads, and exports with the preprocessing inside.

# %%
network.save(WORK / "gated.keras")
loaded = keras.saving.load_model(WORK / "gated.keras")
batch, _ = next(iter(validation))
for task, expected in network(batch).items():
    np.testing.assert_allclose(loaded(batch)[task], expected, rtol=1e-5)
m2m_tf.export_model(loaded, data.preprocessor, WORK / "exported")

# %% [markdown]
# ## What this does not show
#
# That gates help. 500 advertisers and three epochs tell whether a layer trains,
# not whether it is better. The weights that both models have do not start equal
# either: a clone draws its own.

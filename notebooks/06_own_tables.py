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
# # 6. Bring your own tables
#
# **You learn** to turn a raw event log into the three tables, to write the
# spec, to validate, train and evaluate, and to forecast next week with
# intervals, as well as which mistakes are common and what is said to them.
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
import datetime
import io

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
import tensorflow as tf
import yaml

import m2m_tf
from m2m_tf.data import validation
from m2m_tf.evaluation import evaluate_forecasts, format_table
from m2m_tf.evaluation_run import forecast_split
from m2m_tf.plots import COLOURS
from m2m_tf.serving.batch_scoring import score_tables
from m2m_tf.training import load_model

tf.get_logger().setLevel("ERROR")
plt.rcParams["figure.constrained_layout.use"] = True
WORK = pathlib.Path("work/06_own_tables")
shutil.rmtree(WORK, ignore_errors=True)
WORK.mkdir(parents=True)

# %% [markdown]
# ## A raw event log
#
# Yours comes from a warehouse; this one is made here. 300 shops of a platform
# sell through four channels. One table has a line per order, with an *instant*
# in UTC; another a line per promotion that a shop ran. How many orders come
# depends on the shop, the channel, the weekday and on promotions.

# %%
rng = np.random.default_rng(0)
ZONE, START, DAYS = "Europe/Berlin", datetime.date(2025, 1, 6), 154
END = START + datetime.timedelta(days=DAYS - 1)
CHANNELS = {  # orders a day, lift of a promotion, share of the shops
    "web": (3.0, 1.4, 1.0),
    "app": (1.5, 2.2, 0.8),
    "marketplace": (0.8, 1.1, 0.4),
    "social": (0.3, 3.0, 0.2),
}
shops = [f"shop_{index:03d}" for index in range(300)]
size = rng.gamma(1.5, 0.7, len(shops))
orders, promotions = [], []
for shop, scale in zip(shops, size):
    for channel, (rate, lift, share) in CHANNELS.items():
        if rng.random() > share:
            continue
        promoted = rng.random(DAYS // 7 + 1) < 0.25  # Next week's, too.
        level = scale * rate * np.exp(rng.normal(0, 0.2, DAYS).cumsum() * 0.3)
        for day in range(DAYS + 7):
            date = START + datetime.timedelta(days=day)
            if promoted[day // 7]:
                promotions.append((shop, channel, date))
            if day >= DAYS:
                continue  # Planned, but nobody has ordered yet.
            mean = level[day] * (lift if promoted[day // 7] else 1.0)
            mean *= 0.6 if date.weekday() == 6 else 1.0
            for hour in rng.uniform(0, 24, rng.poisson(min(mean, 60))):
                local = datetime.datetime.combine(
                    date, datetime.time()
                ) + datetime.timedelta(hours=hour)
                orders.append((shop, channel, local, rng.gamma(2.0, 20.0)))

orders = (
    pl.DataFrame(
        orders, schema=["shop", "channel", "local", "amount"], orient="row"
    )
    .select(
        "shop",
        "channel",
        pl.col("local")
        .dt.replace_time_zone(ZONE, ambiguous="earliest", non_existent="null")
        .dt.convert_time_zone("UTC")
        .alias("ordered_at"),
        "amount",
    )
    .drop_nulls()
)
promotions = pl.DataFrame(
    promotions, schema=["shop", "channel", "day"], orient="row"
)
print(f"{len(orders):,} orders, {len(promotions):,} days of promotion")
orders.sample(4, seed=1)

# %% [markdown]
# ## From events to the panel
#
# Three decisions, each of a line:
#
# 1. **A day is a local day.** Cut in UTC, the evening's orders would be
#    tomorrow's and weeks would end at an odd hour.
# 2. **A row is a total** of one shop in one channel on one day. Days without an
#    order need no row.
# 3. **What is known ahead goes into the row of the day it is known on.**
#    Promotions are planned a week ahead, so the row of day *d* may carry the
#    promotion of day *d* + 7 as `known_future`. That is an assumption about
#    your business, not about your data.

# %%
HORIZON = 7
daily = (
    orders.with_columns(
        day=pl.col("ordered_at").dt.convert_time_zone(ZONE).dt.date()
    )
    .group_by("shop", "channel", "day")
    .agg(orders=pl.len(), sales=pl.col("amount").sum().round(2))
)
promoted = promotions.with_columns(promoted=1)
planned = promoted.select(
    "shop",
    "channel",
    pl.col("day") - pl.duration(days=HORIZON),
    planned=pl.col("promoted"),
)
keys = ["shop", "channel", "day"]
table = (
    daily.join(promoted, on=keys, how="full", coalesce=True)
    .join(planned, on=keys, how="full", coalesce=True)
    .filter(pl.col("day").is_between(START, END))
    .with_columns(pl.col("orders", "sales", "promoted", "planned").fill_null(0))
    .with_columns(active=(pl.col("orders") > 0).cast(pl.Int64))
    .sort(keys)
)
table.write_parquet(WORK / "panel.parquet")
table.head(4)

# %%
pl.DataFrame(
    {
        "shop": shops,
        "town": rng.choice(["large", "middle", "small"], len(shops)),
        "employees": np.ceil(size * 3),
    }
).write_csv(WORK / "shops.csv")
pl.DataFrame(
    {
        "channel": list(CHANNELS),
        "owned": ["own", "own", "foreign", "foreign"],
        "fee": [0.0, 0.0, 0.12, 0.05],
    }
).write_csv(WORK / "channels.csv")

# %% [markdown]
# ## The spec

# %%
spec_text = f"""
name: shops
panel: panel.parquet
profile: shops.csv
scenarios: channels.csv
entity: shop
scenario: channel
date: day
start: {START}
end: {END}
behavior: [promoted]
performance: [orders, sales, active]
known_future: [planned]
profile_columns: {{categorical: [town], numeric: [employees]}}
scenario_columns: {{categorical: [owned], numeric: [fee]}}
tasks:
  - {{name: orders, column: orders, weight: inverse_mean}}
  - {{name: sales, column: sales, weight: inverse_mean}}
  - {{name: active_days, column: active, weight: inverse_mean}}
lookback: 28
horizon: {HORIZON}
stride: 7
activity: orders
"""
(WORK / "spec.yaml").write_text(spec_text)
spec = m2m_tf.DatasetSpec.load(WORK / "spec.yaml")
print(validation.validate_tables(spec))

# %% [markdown]
# ## Common mistakes, and what is said to them
#
# Each is made once, on a copy of the tables.


# %%
def told(changes, panel_change=None):
    """What validation says to changed spec values or a changed panel."""
    folder = WORK / "mistake"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in ("shops.csv", "channels.csv"):
        shutil.copy(WORK / name, folder)
    changed = table if panel_change is None else panel_change(table)
    changed.write_parquet(folder / "panel.parquet")
    values = yaml.safe_load(spec_text) | changes
    (folder / "spec.yaml").write_text(yaml.safe_dump(values))
    try:
        validation.validate_tables(
            m2m_tf.DatasetSpec.load(folder / "spec.yaml")
        )
    except ValueError as error:
        return str(error)
    return "valid"


mistakes = {
    "instants instead of days": told(
        {},
        lambda rows: rows.with_columns(
            pl.col("day").cast(pl.Datetime("us", "UTC"))
        ),
    ),
    "returns booked as negative sales": told(
        {},
        lambda rows: rows.with_columns(
            sales=pl.when(pl.col("orders") == 1)
            .then(-pl.col("sales"))
            .otherwise("sales")
        ),
    ),
    "a channel that channels.csv does not list": told(
        {},
        lambda rows: rows.with_columns(
            pl.col("channel").replace("social", "socials")
        ),
    ),
    "the panel is one event per row": told(
        {}, lambda rows: pl.concat([rows, rows.head(100)])
    ),
    "a task of a column that is no performance": told(
        {"tasks": [{"name": "promotions", "column": "promoted"}]}
    ),
    "too few days": told({"end": datetime.date(2025, 2, 1)}),
    "a misspelt key": told({"known_futures": ["planned"]}),
}
for mistake, message in mistakes.items():
    print(f"* {mistake}\n{message.replace(str(WORK.resolve()), '...')}\n")

# %% [markdown]
# What no validation can see: a column that is corrected afterwards (returns,
# cancelled orders, late bookings). On the day of the forecast it does not yet
# hold what it holds in your history. Build the panel as it *looked* then.
#
# ## Train and evaluate
#
# The same as `m2m-tf run`, step by step. A small dataset needs more passes than
# a large one: this one has some thousand samples.

# %%
data = m2m_tf.ForecastData.prepare(spec, WORK / "records")
training = dataclasses.replace(
    m2m_tf.TRAINING_PRESETS["small"], epochs=8, members=1
)
with contextlib.redirect_stdout(io.StringIO()):  # Keras' bars.
    m2m_tf.train(
        data, m2m_tf.MODEL_PRESETS["small"], training, WORK / "training"
    )
model = load_model(WORK / "training")
test = forecast_split(data, model)
scores = evaluate_forecasts(
    test.y_true,
    test.forecasts,
    test.scenario,
    spec.task_names,
    data.preprocessor.scenario_names,
)
print(data.preprocessor.statistics.num_samples)
print(format_table(scores, cells_of="m2m_median"))

# %% [markdown]
# `m2m` is the mean, `m2m_median` the median, `last_week` repeats the last seven
# days and `history_mean` the mean of the lookback. The model knows planned
# promotions and naive forecasts do not, so this comparison is not one of
# equals.
#
# ## Next week, with intervals
#
# Export, then score the tables at their last day: every shop in every channel.

# %%
m2m_tf.export_model(model, data.preprocessor, WORK / "saved_model")
print(
    score_tables(
        WORK / "saved_model", spec, spec.end, WORK / "next_week.parquet"
    )
)
forecasts = pl.read_parquet(WORK / "next_week.parquet")
forecasts.filter(pl.col("orders") > 1).select(
    "shop", "channel", "orders", "orders_median", "orders_lower", "orders_upper"
).head(5)

# %%
shop = (
    table.group_by("shop")
    .agg(pl.col("channel").n_unique(), pl.col("orders").sum())
    .sort("channel", "orders")["shop"][-1]
)
figure, axes = plt.subplots(2, 2, figsize=(9.5, 5), sharex=True)
weeks = table.filter(pl.col("shop") == shop).with_columns(
    week=(pl.col("day") - START).dt.total_days() // 7
)
for axis, channel in zip(axes.flat, CHANNELS):
    seen = weeks.filter(pl.col("channel") == channel)
    totals = (
        seen.group_by("week")
        .agg(pl.col("orders").sum(), pl.col("promoted").max())
        .sort("week")
        .tail(12)
    )
    axis.plot(
        totals["week"],
        totals["orders"],
        color="#505050",
        marker=".",
        label="orders of a week",
    )
    on = totals.filter(pl.col("promoted") > 0)
    axis.plot(
        on["week"],
        on["orders"],
        "^",
        color=COLOURS[1],
        markersize=9,
        label="week with a promotion",
    )
    row = forecasts.row(
        by_predicate=(pl.col("shop") == shop) & (pl.col("channel") == channel),
        named=True,
    )
    axis.errorbar(
        DAYS // 7,
        row["orders_median"],
        yerr=[
            [row["orders_median"] - row["orders_lower"]],
            [row["orders_upper"] - row["orders_median"]],
        ],
        fmt="o",
        color=COLOURS[0],
        capsize=4,
        label="forecast: median and 80 % interval",
    )
    (ahead,) = (
        seen.filter(pl.col("day") > END - datetime.timedelta(days=HORIZON))
        .select(pl.col("planned").max().fill_null(0))
        .row(0)
    )
    axis.set_title(f"{channel}: {'a' if ahead else 'no'} promotion planned")
    axis.set_ylabel("orders per week")
    axis.set_ylim(bottom=0)
    axis.grid(color="#dddddd")
for axis in axes[1]:
    axis.set_xlabel(f"week since {START}")
handles, labels = axes[0, 0].get_legend_handles_labels()
figure.legend(
    handles, labels, loc="outside lower center", ncols=3, frameon=False
)
figure.suptitle(f"Next week of {shop} in each channel")
plt.show()

# %% [markdown]
# Do intervals hold what they promise? On the test split, where the labels are
# known: an 80 % interval should hold about 80 % of them. An interval of whole
# numbers holds more: between 4 and 7 active days there is little room to be
# exact. `m2m_tf.evaluation.evaluate_intervals` allows for that, and is what a
# run's report shows.

# %%
inside = (test.y_true >= test.intervals["lower"]) & (
    test.y_true <= test.intervals["upper"]
)
names = data.preprocessor.scenario_names
pl.DataFrame(
    [
        {"channel": name, "test samples": int((test.scenario == index).sum())}
        | {
            task: f"{inside[test.scenario == index, column].mean():.0%}"
            for column, task in enumerate(spec.task_names)
        }
        for index, name in enumerate(names)
        if (test.scenario == index).any()
    ]
)

# %% [markdown]
# ## From here
#
# - A config of five lines and `m2m-tf run` do all this, resumable, with a
#   report (README, *Forecast your own tables*).
# - One test cutoff is one week. Look at several (`split` in the spec) before
#   you believe a score.
# - Invented shops behave as they were written. Yours have holidays, stock-outs
#   and closures: put what is known of them into columns.

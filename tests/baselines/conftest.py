"""Raw features of a small dataset outside advertising: clinics."""

import datetime

import numpy as np
import pytest

from m2m_tf.config import AttributeColumns, DatasetSpec, Task
from m2m_tf.data import schema

CUTOFF = datetime.date(2025, 2, 3)


@pytest.fixture
def spec():
    return DatasetSpec(
        name="clinics",
        panel="panel.parquet",
        profile="profile.parquet",
        scenarios="scenarios.parquet",
        entity="clinic",
        scenario="visit_kind",
        date="day",
        start=datetime.date(2025, 1, 1),
        end=datetime.date(2025, 6, 30),
        behavior=("staff",),
        performance=("visits", "fees"),
        known_future=("appointments",),
        tasks=(
            Task("fees", "fees"),
            Task("visits", "visits"),
            Task("open", "visits", kind="binary"),
        ),
        profile_columns=AttributeColumns(("town",), ("beds",)),
        scenario_columns=AttributeColumns(("channel",), ()),
        lookback=10,
        horizon=4,
        activity="visits",
    )


@pytest.fixture
def make_raw(spec):
    """Returns a function (rows, seed) → raw features with labels."""

    def make(rows, seed=0):
        rng = np.random.default_rng(seed)
        level = rng.gamma(0.7, 1.0, (rows, 1, 1))
        raw = {}
        for name, tensor in schema.raw_features(spec).items():
            shape = (rows, *tensor.shape)
            if tensor.dtype == "string":
                raw[name] = rng.choice([b"one", b"two", b"three"], rows)
                raw[name] = raw[name].astype(object)
            elif tensor.dtype == "float32":
                scale = level if len(shape) == 3 else 2.0
                raw[name] = rng.poisson(scale, shape).astype("float32")
        days = (CUTOFF - datetime.date(1970, 1, 1)).days
        raw[schema.CUTOFF] = np.full(rows, days)
        raw[schema.DAYS_OBSERVED] = np.full(rows, spec.lookback)
        known = raw[schema.KNOWN_FUTURE].sum(axis=(1, 2))
        visits = rng.poisson(3 * level[:, 0, 0] + 2 * known)
        raw["labels"] = np.stack(
            [10.0 * visits, visits, visits > 0], axis=1
        ).astype("float32")
        return raw

    return make

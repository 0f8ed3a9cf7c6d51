"""Makes tables of another domain, clinics, to try the commands on.

python examples/make_clinics.py clinics
m2m-tf run clinics/clinics.yaml
"""

import datetime
import pathlib
import sys

import numpy as np
import polars as pl
import yaml

TOWNS = ("north", "south", "east")
SCENARIOS = ("walk_in", "booked", "video")


def write_clinic_tables(
    folder: pathlib.Path, entities=12, days=120, seed=0, **changes
) -> pathlib.Path:
    """Writes panel, profile, scenarios and spec.yaml; returns the spec's path.

    Clinics × visit kinds: staff on duty and opening hours (behavior) lead to
    visits, fees and open days (performance). Who walks in finds the staff
    that is there; visits of the other kinds follow appointments made a week
    before, which a model may know (`known_future`). `changes` replace keys of
    the spec.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    start = datetime.date(2025, 3, 1)
    rows = []
    for entity in range(entities):
        size = rng.gamma(2.0, 2.0)
        # Demand comes and goes, at each clinic in its own time.
        wave = np.arange(-7, days) / 50 + rng.random()
        demand = size * np.exp(0.6 * np.sin(2 * np.pi * wave))
        for kind, scenario in enumerate(SCENARIOS):
            if rng.random() < 0.15:
                continue
            booked = rng.poisson(demand)
            for day in range(days):
                date = start + datetime.timedelta(days=day)
                is_open = date.weekday() < 6
                staff = rng.poisson(size) * is_open
                # Made on this day, for the same weekday of next week.
                appointments = booked[day + 7] * is_open
                expected = 0.8 * booked[day] / kind if kind else 0.6 * staff
                visits = rng.poisson(expected * is_open)
                if not (staff or visits or appointments):
                    continue
                rows.append(
                    {
                        "clinic": f"clinic_{entity:03d}",
                        "visit_kind": scenario,
                        "day": date,
                        "staff": float(staff),
                        "open_hours": float(4 + staff),
                        "visits": float(visits),
                        "fees": float(visits * rng.uniform(20, 60)),
                        "open_days": float(visits > 0),
                        "appointments": float(appointments),
                    }
                )
    pl.DataFrame(rows).write_parquet(folder / "panel.parquet")
    pl.DataFrame(
        {
            "clinic": [f"clinic_{i:03d}" for i in range(entities)],
            "town": [TOWNS[i % len(TOWNS)] for i in range(entities)],
            "beds": [float(i % 5) for i in range(entities)],
        }
    ).write_csv(folder / "profile.csv")
    pl.DataFrame(
        {
            "visit_kind": list(SCENARIOS),
            "channel": ["site", "site", "remote"],
            "needs_booking": [0.0, 1.0, 1.0],
        }
    ).write_parquet(folder / "scenarios.parquet")
    last = start + datetime.timedelta(days=days - 1)
    spec = {
        "name": "clinics",
        "panel": "panel.parquet",
        "profile": "profile.csv",
        "scenarios": "scenarios.parquet",
        "entity": "clinic",
        "scenario": "visit_kind",
        "date": "day",
        "start": start.isoformat(),
        "end": last.isoformat(),
        "behavior": ["staff", "open_hours"],
        "performance": ["visits", "fees", "open_days"],
        "known_future": ["appointments"],
        "profile_columns": {"categorical": ["town"], "numeric": ["beds"]},
        "scenario_columns": {
            "categorical": ["channel"],
            "numeric": ["needs_booking"],
        },
        "tasks": [
            {"name": "visits", "column": "visits", "weight": "inverse_mean"},
            {"name": "fees", "column": "fees", "weight": "inverse_mean"},
            {"name": "open", "column": "open_days", "kind": "binary"},
        ],
        "lookback": 28,
        "horizon": 7,
        "stride": 7,
        "activity": "visits",
    } | changes
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return path


def main(folder: str) -> None:
    """Writes tables, their spec, and a config that trains on them."""
    folder = pathlib.Path(folder)
    write_clinic_tables(folder, entities=200)
    config = {
        "name": "clinics",
        "data": "spec.yaml",
        "model": {"preset": "small"},
        "training": {"preset": "small", "epochs": 20},
        "evaluation": {"lightgbm": True},
        "push": {"tolerance": 0.5},
    }
    path = folder / "clinics.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    print(f"tables and spec in {folder}; next: m2m-tf run {path}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/make_clinics.py FOLDER")
    main(sys.argv[1])

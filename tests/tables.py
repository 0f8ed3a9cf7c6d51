"""Small tables in the data contract, outside advertising, and settings."""

import datetime

import polars as pl
from make_clinics import write_clinic_tables as write_clinic_tables

from m2m_tf.config import ModelSettings, TrainingSettings
from m2m_tf.data.panel import scan_table

SMALL_MODEL = ModelSettings(
    embedding_dim=2,
    pooling="mean",
    num_experts=2,
    view_dim=8,
    knowledge_dim=4,
    num_meta_layers=1,
    num_tower_layers=1,
    history_offset=True,
    dropout=0.1,
    likelihood="hurdle",
)
SMALL_TRAINING = TrainingSettings(batch_size=32, epochs=2)


def write_accented_tables(folder, **changes):
    """The clinic tables with ids and attributes of all kinds of letters.

    The first clinic and the first kind of visit lack their attributes, and
    the second clinic is shut for three weeks before the last test week.
    """
    spec_path = write_clinic_tables(folder, **changes)
    in_spanish = {
        "video": r"vídeo $\x$ 5|6",
        "clinic_": "clínica ",
        "south": "mañana",
    }
    for name in ("panel.parquet", "profile.csv", "scenarios.parquet"):
        path = folder / name
        frame = scan_table(path).collect()
        frame = frame.with_columns(
            pl.col(pl.String).str.replace_many(in_spanish)
        )
        if "panel" in name:
            last = pl.col("day").max() - pl.col("day")
            shut = last.is_between(
                datetime.timedelta(7), datetime.timedelta(27)
            )
            frame = frame.filter(
                ~(shut & pl.col("clinic").str.ends_with("001"))
            )
        else:
            frame = frame.with_columns(
                pl.when(pl.int_range(pl.len()) > 0).then(pl.col(column))
                for column in frame.columns[1:]
            )
        is_csv = path.suffix == ".csv"
        frame.write_csv(path) if is_csv else frame.write_parquet(path)
    return spec_path

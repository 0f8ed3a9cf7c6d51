"""Tables as they come: folders of files, and spoilt in one way or another."""

import dataclasses

import polars as pl

from m2m_tf.data import panel


def with_panel(spec, tmp_path, frame, name="panel.parquet"):
    path = tmp_path / name
    frame.write_csv(path) if name.endswith("csv") else frame.write_parquet(path)
    return dataclasses.replace(spec, panel=path)


def set_rows(frame, column, value, count=1):
    rows = pl.int_range(pl.len()) < count
    return frame.with_columns(
        pl.when(rows).then(value).otherwise(pl.col(column)).alias(column)
    )


def by_kind(frame, folder):
    """CSV, the kind of visit is a folder's name and has other letters."""
    for (kind,), rows in frame.partition_by("visit_kind", as_dict=True).items():
        part = folder / f"visit_kind={kind.replace('_', '%5F')}" / "a.csv"
        part.parent.mkdir(parents=True)
        rows.drop("visit_kind").write_csv(part)


def in_parts_unlike_each_other(frame, folder):
    """Files of both kinds, other orders and types, a column too many."""
    folder.mkdir()
    half = frame.height // 2
    other = frame[half:].select(sorted(frame.columns)).with_columns(more=1)
    frame[:half].write_csv(folder / "a.csv")
    other.with_columns(pl.col("open_days").cast(pl.Int8)).write_parquet(
        folder / "b.parquet"
    )


ATTRIBUTES = {"profile": "beds", "scenarios": "needs_booking"}


def with_attribute(spec, table, name, value, ending):
    path = getattr(spec, table).with_name(f"other_{table}{ending}")
    frame = set_rows(
        panel.scan_table(getattr(spec, table)).collect(), name, value
    )
    frame.write_csv(path) if ending == ".csv" else frame.write_parquet(path)
    return dataclasses.replace(spec, **{table: path})

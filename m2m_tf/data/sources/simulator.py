"""Simulated advertisers whose best possible forecasts are known.

Written from the premise of the paper (sections 1 and 3), never tuned on a
model's scores. On day d advertiser a has in scenario s, task by task, the
expected value given its state

    log rate_t = base_st + size_a + quality_a q_t + budget_ad
                 + own_as + demand_asd + season_ad + b(Σ_k W_stk(a) z_asdk)

with b(x) = 2 tanh(x / 2), while its campaign in s is on, and 0 while it is
off. Budget, demand and the intensity of its behaviours are AR(1) processes;
campaigns start and stop by a Markov chain; advertisers leave for good with a
hazard of their own. z is the exponential mean (decay 1/10 a day) of
2.5 log(1 + behaviour count), so what an advertiser does works for days.

W is the mechanism: how behaviour k moves task t in scenario s,

    W_stk(a) = w tanh(Σ_i x_si M_itk + Σ_i x_si P_itk(category of a))

with w the strength of the mechanisms, x_s the centred attributes of the
scenario and M, P drawn once: the same behaviour raises clicks in one scenario
and lowers them in another, and for another category otherwise. Without
scenario dependence every scenario has the x of the major one, so that
mechanisms differ by category alone; volumes still differ by scenario.

Advertisers' totals in two scenarios go together through size, quality and
budget and apart through `own` and the mechanisms, whose variances set the
correlations of the paper's Table 1; the shares of scenarios are those of its
Table 3. One minor scenario opens late in the training days, one after them.

Six scenarios with six attributes tell next to nothing of one another's
mechanisms: what five of them have does not give away the sixth's. With further
scenarios there is something to carry over. They are drawn by chance, all of
them minor ones, of each six one that opens late and one after training.
"""

import dataclasses
import datetime
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import polars as pl
import yaml
from tqdm import tqdm

from m2m_tf import files
from m2m_tf.config import DatasetSpec, parse
from m2m_tf.data import windows

START = datetime.date(2024, 1, 1)
LOOKBACK, HORIZON, STRIDE = 40, 7, 7
# Fewer days would leave no test cutoff after the gaps between the splits.
MIN_DAYS = 140

# About as much as the correlations of the paper's Table 1 allow: what works
# differently in two scenarios drives their totals apart.
MECHANISM_STRENGTH = 0.5

BEHAVIOR = [
    "logins",
    "bid_raises",
    "budget_raises",
    "creative_changes",
    "keyword_adds",
]
TASKS = ["pv", "click", "expenditure", "gmv", "active_days"]
CATEGORIES = 8

_SCENARIO_COLUMNS = {
    "scenario": pl.String,
    "placement": pl.String,
    "pricing": pl.String,
    "intent": pl.Float32,
    "visibility": pl.Float32,
    "brand_focus": pl.Float32,
}
# The paper's. Attributes; share of advertisers that ever run a campaign there
# (Table 3 by samples); share of the training days after which the scenario
# opens; spread of what an advertiser has of its own there (the correlations);
# logs of views, clicks per view, cost per click, and orders per click.
_SCENARIOS = [
    (
        ("sponsored_search", "search", "cpc", 0.9, 0.6, 0.4),
        (0.97, 0.0, 0.2),
        (4.2, -2.8, -0.3, -2.6),
    ),
    (
        ("display", "banner", "cpm", 0.1, 0.9, 0.5),
        (0.020, 0.0, 0.9),
        (4.6, -4.2, -0.9, -3.6),
    ),
    (
        ("star_shop", "shop", "cpm", 0.5, 0.7, 0.9),
        (0.055, 0.7, 0.9),
        (4.0, -3.4, -0.3, -2.8),
    ),
    (
        ("news_feed", "feed", "cpc", 0.2, 0.8, 0.2),
        (0.29, 0.0, 0.2),
        (4.0, -3.4, -0.6, -3.4),
    ),
    (
        ("brand_search", "search", "cpm", 0.8, 0.7, 1.0),
        (0.032, 0.0, 0.8),
        (3.2, -2.2, 0.3, -1.9),
    ),
    (
        ("live", "feed", "cpm", 0.4, 0.8, 0.7),
        (0.030, 1.0, 0.8),
        (3.8, -3.2, -0.3, -2.9),
    ),
]
LEAST_SCENARIOS = len(_SCENARIOS)
_QUALITY = np.array([0.1, 0.5, 0.3, 0.8])
_BASKET_SPREAD = 0.6
_VIEW_SHAPE = 3.0
_DECAY = 0.1
# Brings z of a running campaign to about 1.
_STRENGTH = 2.5
# Most that size and behaviour add to a log rate. Without bounds three of 500
# advertisers made up half of a minor scenario, and every mean over it.
_LARGEST = 3.0
_MOST_MOVED = 2.0
# The world is the same for every seed; only advertisers are drawn anew.
_WORLD_SEED = 20220221
_CHUNK = 500
_CONTINUATIONS = 100


@dataclasses.dataclass(frozen=True)
class World:
    """What is drawn once: scenarios, mechanisms and the categories' tastes.

    Args:
        scenarios: The table of scenarios.
        reach: Share of advertisers that ever run a campaign there, `[S]`.
        opening: Share of the training days after which it opens, `[S]`.
        own: Spread of what an advertiser has of its own there, `[S]`.
        base: Logs of views, clicks per view, cost per click, and orders per
            click, `[S, 4]`.
        mechanism: W before the category, `[S, 4, K]`, for these four.
        by_category: What a category adds, `[C, S, 4, K]`.
        strength: w.
    """

    scenarios: pl.DataFrame
    reach: np.ndarray
    opening: np.ndarray
    own: np.ndarray
    base: np.ndarray
    mechanism: np.ndarray
    by_category: np.ndarray
    strength: float

    def weights(self, category) -> np.ndarray:
        """W of each advertiser, `[A, S, 4, K]`."""
        return self.strength * np.tanh(
            self.mechanism + self.by_category[category]
        )


def make_world(
    scenario_dependence: bool = True,
    mechanism_strength: float = MECHANISM_STRENGTH,
    scenarios: int = LEAST_SCENARIOS,
) -> World:
    """Draws the mechanisms.

    Args:
        scenario_dependence: False gives every scenario the same ones.
        mechanism_strength: w.
        scenarios: Number of scenarios.
    """
    rng = np.random.default_rng(_WORLD_SEED)
    further = range(LEAST_SCENARIOS, scenarios)
    described = [*_SCENARIOS, *(_draw_scenario(number) for number in further)]
    rows, shares, base = zip(*described, strict=True)
    table = pl.DataFrame(list(rows), schema=_SCENARIO_COLUMNS, orient="row")
    reach, opening, own_spread = np.array(shares).T
    attributes = table.select(
        (pl.col("placement") == "search").cast(pl.Float32).alias("search"),
        (pl.col("placement") == "feed").cast(pl.Float32).alias("feed"),
        (pl.col("pricing") == "cpc").cast(pl.Float32).alias("cpc"),
        "intent",
        "visibility",
        "brand_focus",
    ).to_numpy()
    spread = attributes.std(0)
    attributes = (attributes - attributes.mean(0)) / spread
    if not scenario_dependence:
        attributes = np.repeat(attributes[:1], len(attributes), 0)
    width, num_behaviors = attributes.shape[1], len(BEHAVIOR)
    shared = rng.normal(0, 0.5, (width, 4, num_behaviors))
    own = rng.normal(0, 0.25, (CATEGORIES, width, 4, num_behaviors))
    return World(
        scenarios=table,
        reach=reach,
        opening=opening,
        own=own_spread,
        base=np.array(base),
        mechanism=np.einsum("si,itk->stk", attributes, shared),
        by_category=np.einsum("si,citk->cstk", attributes, own),
        strength=mechanism_strength,
    )


def _draw_scenario(number):
    """A minor scenario, the same whatever their number is."""
    rng = np.random.default_rng([_WORLD_SEED, number])
    _, (_, opening, _), _ = _SCENARIOS[number % LEAST_SCENARIOS]
    attributes = rng.uniform(0, 1, 3).round(2)
    return (
        (
            f"scenario_{number:03d}",
            str(rng.choice(["search", "banner", "shop", "feed"])),
            str(rng.choice(["cpc", "cpm"])),
            *attributes.tolist(),
        ),
        (
            np.exp(rng.uniform(np.log(0.02), np.log(0.06))),
            opening,
            rng.uniform(0.2, 0.9),
        ),
        rng.uniform((3.2, -4.2, -0.9, -3.6), (4.6, -2.2, 0.3, -1.9)),
    )


def write_tables(
    output_dir: str | os.PathLike,
    advertisers: int = 2500,
    days: int = 240,
    seed: int = 0,
    scenario_dependence: bool = True,
    mechanism_strength: float = MECHANISM_STRENGTH,
    scenarios: int = LEAST_SCENARIOS,
) -> pathlib.Path:
    """Writes `panel`, `profile`, `scenarios`, `true_rates` and `spec.yaml`.

    `true_rates` holds, for each validation and test cutoff and each pair with
    a campaign open to it, the best possible forecasts: `<task>_mean` and
    `<task>_median` of the coming week given everything up to the cutoff, the
    hidden state included, from 100 simulated continuations. Advertisers are
    simulated 500 at a time, each group from a seed of its own, so that memory
    does not grow with their number.

    Args:
        output_dir: Folder for the files; made when absent.
        advertisers: Number of advertisers.
        days: Days simulated, 140 at least.
        seed: Seeds the advertisers.
        scenario_dependence: False gives all scenarios the same mechanisms.
        mechanism_strength: How much behaviours move log rates, w; 0: not.
        scenarios: Number of scenarios, six at least.

    Returns:
        The path of the written `spec.yaml`.

    Raises:
        ValueError: If there are too few advertisers, days or scenarios, or
            the seed or the strength is negative.
    """
    for name, value, least in (
        ("advertisers", advertisers, 1),
        ("days", days, MIN_DAYS),
        ("seed", seed, 0),
        ("mechanism_strength", mechanism_strength, 0),
        ("scenarios", scenarios, LEAST_SCENARIOS),
    ):
        if value < least:
            raise ValueError(
                f"`{name}` must be {least} at least. Received: {name}={value}"
            )
    folder = pathlib.Path(output_dir)
    spec = make_spec(days, scenario_dependence)
    world = make_world(scenario_dependence, mechanism_strength, scenarios)
    cutoffs, opening = plan(spec, world)
    parts = {"panel": [], "profile": [], "true_rates": []}
    chunks = range(0, advertisers, _CHUNK)
    with files.replacing(folder / "parts") as temporary:
        temporary.mkdir()
        for number, first in enumerate(
            tqdm(chunks, desc="simulating", unit=" groups")
        ):
            count = min(_CHUNK, advertisers - first)
            tables = simulate_group(
                world, first, count, days, seed, cutoffs, opening
            )
            for name, table in tables.items():
                path = temporary / f"{name}-{number:06d}.parquet"
                table.write_parquet(path)
                parts[name].append(path)
        for name, paths in parts.items():
            with files.replacing(folder / f"{name}.parquet") as path:
                pl.scan_parquet(paths, glob=False).sink_parquet(path)
        for path in temporary.iterdir():
            path.unlink()
    (folder / "parts").rmdir()
    with files.replacing(folder / "scenarios.parquet") as path:
        world.scenarios.write_parquet(path)
    # Last: a folder with a spec has its tables.
    path = folder / "spec.yaml"
    files.write_text(path, yaml.safe_dump(spec, sort_keys=False))
    return path


def make_spec(days: int, scenario_dependence: bool) -> dict:
    """Plain values of the dataset spec."""
    kind = "differ by" if scenario_dependence else "are the same in every"
    return {
        "name": "simulated_advertisers",
        "description": "Simulated advertisers whose mechanisms "
        f"{kind} scenario.",
        "panel": "panel.parquet",
        "profile": "profile.parquet",
        "scenarios": "scenarios.parquet",
        "entity": "advertiser",
        "scenario": "scenario",
        "date": "date",
        "start": START.isoformat(),
        "end": (START + datetime.timedelta(days=days - 1)).isoformat(),
        "behavior": BEHAVIOR,
        "performance": TASKS,
        "profile_columns": {
            "categorical": ["category", "business_scale", "star_level"],
            "numeric": ["seller_age", "price_level"],
        },
        "scenario_columns": {
            "categorical": ["placement", "pricing"],
            "numeric": ["intent", "visibility", "brand_focus"],
        },
        "tasks": [
            {"name": name, "column": name, "weight": "inverse_mean"}
            for name in TASKS
        ],
        "lookback": LOOKBACK,
        "horizon": HORIZON,
        "stride": STRIDE,
        "activity": "active_days",
    }


def plan(spec: dict, world: World) -> tuple[list[int], np.ndarray]:
    """Cutoffs to tell the best forecasts at, and each scenario's first day.

    Args:
        spec: From `make_spec`.
        world: From `make_world`.

    Returns:
        Tuple of day numbers and an array `[S]` of day numbers.

    Example:

    >>> spec = make_spec(140, scenario_dependence=True)
    >>> cutoffs, opening = plan(spec, make_world(scenarios=24))
    >>> opening.shape
    (24,)
    """
    dataset = parse(DatasetSpec, spec)
    splits = windows.make_splits(dataset)
    training_days = windows.last_fit_day(dataset) + 1
    opening = np.ceil(world.opening * training_days).astype(int)
    return [*splits.validation, *splits.test], opening


@dataclasses.dataclass
class _Advertisers:
    """What stays as it is, arrays over A advertisers."""

    size: np.ndarray
    quality: np.ndarray
    category: np.ndarray
    seller_age: np.ndarray
    price: np.ndarray
    hazard: np.ndarray
    season: np.ndarray  # [A, 2]: amplitude, phase
    weekend: np.ndarray
    eager: np.ndarray  # [A, K]: log intensity of behaviours
    base: np.ndarray  # [S, 4], the same for all
    own: np.ndarray  # [A, S]
    joins: np.ndarray  # [A, S]: ever runs a campaign there
    start: np.ndarray  # [A, S]: daily probability to start
    stop: np.ndarray  # [A, S]: daily probability to stop
    weights: np.ndarray  # [A, S, 4, K]


@dataclasses.dataclass
class _State:
    """What changes from day to day, arrays over `[..., A]` or `[..., A, S]`."""

    alive: np.ndarray
    running: np.ndarray
    budget: np.ndarray
    demand: np.ndarray
    mood: np.ndarray  # [..., A, K]
    effect: np.ndarray  # z, [..., A, S, K]

    def repeated(self, times):
        return _State(
            *(
                np.repeat(getattr(self, field.name)[None], times, 0)
                for field in dataclasses.fields(self)
            )
        )


def simulate_group(
    world: World,
    first: int,
    count: int,
    days: int,
    seed: int,
    cutoffs: Sequence[int],
    opening: np.ndarray,
) -> dict[str, pl.DataFrame]:
    """Simulates the advertisers with numbers from `first` on.

    Args:
        world: From `make_world`.
        first: Number of the first advertiser.
        count: Number of advertisers.
        days: Days to simulate.
        seed: Seed of the whole data; each `first` has numbers of its own.
        cutoffs: Day numbers to tell the best forecasts at; costs far more
            than the rest.
        opening: Each scenario's first day, `[S]`.

    Returns:
        Dict of tables, `panel`, `profile` and, unless `cutoffs` is empty,
        `true_rates`, as `write_tables` writes them.

    Example:

    >>> world = make_world()
    >>> _, opening = plan(make_spec(140, scenario_dependence=True), world)
    >>> tables = simulate_group(world, 0, 20, 140, 0, [], opening)
    >>> tables["profile"].height
    20
    """
    people_seed, path_seed, future_seed = np.random.SeedSequence(
        [seed, first]
    ).spawn(3)
    rng = np.random.default_rng(people_seed)
    people = _draw_advertisers(rng, world, count)
    state = _first_state(rng, people)
    rng = np.random.default_rng(path_seed)
    ids = np.array([f"a{first + i:07d}" for i in range(count)])
    # A continuation looks at day numbers alone, so that what follows the
    # cutoff on the path that happened is not known to it.
    names = world.scenarios["scenario"].to_numpy()
    panel, truth = [], []
    for day in range(days):
        state, _, drawn = _advance(state, people, day, day >= opening, rng)
        panel.append(_panel_rows(drawn, ids, names, day))
        if day in cutoffs:
            truth.append(
                _best_forecasts(
                    state,
                    people,
                    day,
                    opening,
                    ids,
                    names,
                    future_seed.spawn(1)[0],
                )
            )
    tables = {"panel": pl.concat(panel), "profile": _profile(people, ids, rng)}
    if truth:
        tables["true_rates"] = pl.concat(truth)
    return tables


def moved_rates(behavior: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What behaviours add to log rates day by day, for who knows W.

    Args:
        behavior: Daily counts `[N, days, K]`; what came before is not known.
        weights: W of each row, `[N, 4, K]`, see `World.weights`.

    Returns:
        Array `[N, days, 4]`; the last day's is that of the day after.

    Example:

    >>> weights = make_world().weights(np.array([3]))[:, 0]
    >>> moved_rates(np.ones((1, 40, 5)), weights).shape
    (1, 40, 4)
    """
    effect = np.zeros((len(behavior), behavior.shape[2]))
    days = []
    for counts in np.moveaxis(behavior, 1, 0):
        effect = _next_effect(effect, counts)
        days.append(_moved(effect, weights))
    return np.stack(days, axis=1)


def _draw_advertisers(rng, world, count):
    pairs = (count, len(world.scenarios))
    category = rng.integers(CATEGORIES, size=count)
    return _Advertisers(
        size=_bounded(rng.normal(0, 1.3, count), _LARGEST),
        quality=rng.normal(0, 0.5, count),
        category=category,
        seller_age=rng.gamma(2.0, 2.0, count),
        price=rng.normal(0, 0.5, count),
        hazard=0.002 * rng.gamma(0.5, 2.0, count),
        season=np.stack(
            [rng.uniform(0, 0.4, count), rng.uniform(0, 2 * np.pi, count)], 1
        ),
        weekend=rng.normal(0.1, 0.3, count),
        eager=rng.normal(-1.2, 0.7, (count, len(BEHAVIOR))),
        base=world.base,
        own=rng.normal(0, 1, pairs) * world.own,
        joins=rng.random(pairs) < world.reach,
        start=rng.beta(2, 18, pairs),
        stop=rng.beta(2, 38, pairs),
        weights=world.weights(category),
    )


def _first_state(rng, people):
    pairs = people.own.shape
    share = people.start / (people.start + people.stop)
    return _State(
        alive=np.ones(pairs[0], bool),
        running=(rng.random(pairs) < share) & people.joins,
        budget=rng.normal(0, 0.4, pairs[0]),
        demand=rng.normal(0, 0.4, pairs),
        mood=rng.normal(0, 0.8, (pairs[0], len(BEHAVIOR))),
        effect=np.zeros((*pairs, len(BEHAVIOR))),
    )


def _advance(state, people, day, is_open, rng):
    """One day: state before → (state after, expected values, what happened).

    All arrays may have axes before those of the advertisers (continuations).

    Args:
        state: `_State` at the end of the day before.
        people: `_Advertisers`.
        day: Day number.
        is_open: Whether each scenario has opened `[S]`.
        rng: Random generator.

    Returns:
        Tuple of the new state, expected values of the tasks given it
        `[..., A, S, T]`, and a dict of what happened.
    """
    shape = state.running.shape

    def autoregressive(values, decay, spread):
        shock = rng.normal(0, spread * np.sqrt(1 - decay**2), values.shape)
        return decay * values + shock

    alive = state.alive & (rng.random(state.alive.shape) >= people.hazard)
    starts = rng.random(shape) < people.start
    stops = rng.random(shape) < people.stop
    running = np.where(state.running, ~stops, starts)
    running &= alive[..., None] & people.joins & is_open
    budget = autoregressive(state.budget, 0.97, 0.4)
    demand = autoregressive(state.demand, 0.95, 0.4)
    mood = autoregressive(state.mood, 0.95, 0.8)
    intensity = np.exp(people.eager + mood)[..., None, :]
    intensity = np.where(running[..., None], intensity, 0.02)
    intensity = intensity * (alive[..., None, None] & is_open[:, None])
    intensity = intensity * people.joins[..., None]
    behavior = rng.poisson(intensity)
    # What is done today works from tomorrow on.
    moved = _moved(state.effect, people.weights)
    effect = _next_effect(state.effect, behavior)
    year = 2 * np.pi * day / 365.25 + people.season[:, 1]
    season = people.season[:, 0] * np.sin(year)
    season = season + people.weekend * (day % 7 >= 5)
    level = people.size + budget + season
    quality = people.quality[:, None] * _QUALITY
    base_pv, base_click, base_cost, base_order = people.base.T
    views = level[..., None] + people.own + demand + base_pv
    views = np.exp(views + moved[..., 0] + quality[:, None, 0]) * running
    click_share = _sigmoid(base_click + moved[..., 1] + quality[:, None, 1])
    cost = np.exp(base_cost + moved[..., 2] + quality[:, None, 2])
    order_share = np.exp(base_order + moved[..., 3] + quality[:, None, 3])
    price = 20 * np.exp(people.price)[:, None]
    # Mean of a gamma mixture: the share of days without a view.
    none = (_VIEW_SHAPE / (_VIEW_SHAPE + views)) ** _VIEW_SHAPE
    expected = np.stack(
        [
            views,
            views * click_share,
            views * click_share * cost,
            views * click_share * order_share * price,
            1 - none,
        ],
        axis=-1,
    )
    rate = views * rng.gamma(_VIEW_SHAPE, 1 / _VIEW_SHAPE, shape)
    pv = rng.poisson(rate)
    click = rng.binomial(pv, click_share)
    orders = rng.poisson(click * order_share)
    # Σ of log-normal baskets with mean `price`, by a gamma of their moments.
    spread = np.expm1(_BASKET_SPREAD**2)
    baskets = rng.gamma(np.maximum(orders, 1) / spread, spread)
    noise = rng.gamma(20.0, 1 / 20.0, shape)
    happened = {
        "behavior": behavior,
        "tasks": np.stack(
            [
                pv,
                click,
                np.round(click * cost * noise, 2),
                np.round(np.where(orders > 0, baskets * price, 0.0), 2),
                pv > 0,
            ],
            axis=-1,
        ),
    }
    after = _State(alive, running, budget, demand, mood, effect)
    return after, expected, happened


def _moved(effect, weights):
    """b(Σ_k W_tk z_k), `[..., 4]`."""
    return _bounded(np.einsum("...k,...tk->...t", effect, weights), _MOST_MOVED)


def _next_effect(effect, behavior):
    """z of the day after."""
    return (1 - _DECAY) * effect + _DECAY * _STRENGTH * np.log1p(behavior)


def _bounded(values, most):
    """Values between -most and most; small ones hardly change."""
    return most * np.tanh(values / most)


def _sigmoid(values):
    return 1 / (1 + np.exp(-values))


def _best_forecasts(state, people, day, opening, ids, names, seed):
    """Mean and median of the coming week given the state, all pairs."""
    rng = np.random.default_rng(seed)
    state = state.repeated(_CONTINUATIONS)
    expected, totals = 0.0, 0.0
    for ahead in range(1, HORIZON + 1):
        is_open = day + ahead >= opening
        state, rates, drawn = _advance(state, people, day + ahead, is_open, rng)
        expected = expected + rates.mean(0)
        totals = totals + drawn["tasks"]
    values = {"mean": expected, "median": np.median(totals, axis=0)}
    kept = people.joins & (day >= opening)
    rows, columns = np.nonzero(kept)
    return pl.DataFrame(
        {
            "advertiser": ids[rows],
            "scenario": names[columns],
            "cutoff": pl.Series([_date(day)]).new_from_index(0, len(rows)),
            **{
                f"{task}_{kind}": array[rows, columns, index]
                for kind, array in values.items()
                for index, task in enumerate(TASKS)
            },
        }
    )


def _panel_rows(happened, ids, names, day):
    behavior, tasks = happened["behavior"], happened["tasks"]
    rows, columns = np.nonzero((behavior > 0).any(-1) | (tasks > 0).any(-1))
    values = {
        name: array[rows, columns, index].astype("float32")
        for group, array in ((BEHAVIOR, behavior), (TASKS, tasks))
        for index, name in enumerate(group)
    }
    return pl.DataFrame(
        {
            "advertiser": ids[rows],
            "scenario": names[columns],
            "date": pl.Series([_date(day)]).new_from_index(0, len(rows)),
            **values,
        }
    )


def _profile(people, ids, rng):
    """The profile tells of size and quality with errors."""
    scale = people.size + rng.normal(0, 0.4, len(ids))
    stars = people.quality + rng.normal(0, 0.3, len(ids))
    return pl.DataFrame(
        {
            "advertiser": ids,
            "category": [f"category_{c}" for c in people.category],
            "business_scale": _levels(scale, (-1.0, 0.0, 1.0), "scale"),
            "star_level": _levels(stars, (-0.5, 0.0, 0.5), "star"),
            "seller_age": people.seller_age.astype("float32"),
            "price_level": np.exp(people.price).astype("float32"),
        }
    )


def _levels(values, edges, prefix):
    return [f"{prefix}_{level}" for level in np.digitize(values, edges)]


def _date(day):
    return START + datetime.timedelta(days=int(day))

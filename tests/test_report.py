import html.parser

import numpy as np
import pytest
from browser import chromium
from matplotlib.figure import Figure

from m2m_tf import report as reporting
from m2m_tf.evaluation import evaluate_forecasts, evaluate_intervals
from m2m_tf.report import write_report

# Only the first bytes of a figure are looked at.
PNG = b"\x89PNG\r\n\x1a\n made-up"


class Page(html.parser.HTMLParser):
    """Collects text, links and tags, and checks that tags are closed."""

    def __init__(self, text):
        super().__init__()
        self.words, self.links, self.tags, self.open = [], [], [], []
        # Where a name may be broken it still is one word.
        self.feed(text.replace("<wbr>", ""))
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href")]
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def metrics():
    y_true = np.array([[1.0, 0.0], [3.0, 0.0]])
    forecasts = {
        "m2m": y_true + 0.5,
        "m2m_median": y_true,
        "history_mean": y_true + 1.0,
    }
    return evaluate_forecasts(
        y_true, forecasts, [0, 1], ["clicks", "sales"], ["shelf", "<coupon>"]
    )


@pytest.fixture
def report(metrics, tmp_path):
    figure = tmp_path / "cells.png"
    figure.write_bytes(PNG)
    path = tmp_path / "out" / "report.html"
    write_report(
        path,
        title="Run <1> & more",
        summary={"test samples": 21043, "share": 0.125},
        metrics=metrics,
        model="m2m",
        figures=[(figure, "Errors by task & scenario.")],
        settings={"model": {"name": "m2m", "dropout": 0.0}, "jit": True},
    )
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


def test_shows_what_it_was_given(report):
    text = Page(report).text
    assert "Run <1> & more" in text
    assert "test samples 21,043" in text
    assert "share 0.125" in text
    assert "model.name m2m model.dropout 0 jit True" in text
    assert "Errors by task & scenario." in text
    assert "gives 2 to any positive forecast of a true 0" in text


def test_unknown_scenarios_are_explained(report, tmp_path):
    metrics = evaluate_forecasts(
        [[1.0]], {"m2m": [[2.0]]}, [0], ["clicks"], ["(unknown)"]
    )
    path = tmp_path / "unknown.html"
    write_report(path, title="A run", summary={}, metrics=metrics, model="m2m")
    note = "training split has not seen, all together"
    assert note in Page(path.read_text(encoding="utf-8")).text
    assert note not in Page(report).text


def test_headline_comes_first(report):
    text = Page(report).text
    # Errors of 0.5 over labels of 1 and 3; twice as much for the naive one.
    assert text.index("NMAE 0.333 history_mean: 0.667 (-50%)") < text.index(
        "All forecasts"
    )


def test_concerns_follow_the_headline(long_report, report):
    text = Page(long_report.read_text(encoding="utf-8")).text
    concern = (
        "100.0% of the labels are inside the 80% interval: it is too wide."
    )
    assert text.index("Before you use it") < text.index(concern)
    assert text.index(concern) < text.index("All forecasts")
    # Half a click too many in each slice, of two on average.
    assert "sum up to 125% of all clicks" in Page(report).text


def test_tables(report):
    page = Page(report)
    assert "m2m_median 0.000 0.000 –" in page.text
    # samples, zeros, mean label and forecast, the model's and the naive NMAE.
    assert "clicks <coupon> 1 0% 3.000 3.500 0.167 0.333" in page.text
    assert "sales shelf 1 100% 0.000 0.500 – – 2.000 2.000" in page.text


def test_cells_in_which_the_naive_forecast_is_better_are_marked(
    metrics, tmp_path
):
    def marked(**scores):
        metrics["m2m"]["cells"][0].update(scores)
        path = tmp_path / "report.html"
        write_report(
            path, title="Run", summary={}, metrics=metrics, model="m2m"
        )
        return path.read_text("utf-8").count('" class="behind">')

    assert marked() == 0
    naive = metrics["history_mean"]["cells"][0]
    assert marked(nmae=naive["nmae"]) == 0
    assert marked(nmae=naive["nmae"] + 0.1, smape=1.9) == 2


def test_escapes_and_loads_nothing(report):
    page = Page(report)
    assert "<coupon>" not in report
    assert "<1>" not in report
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert "data:image/png;base64," in report
    assert "http" not in report
    assert "url(" not in report


def test_without_naive_figures_and_settings(metrics, tmp_path):
    path = tmp_path / "report.html"
    write_report(
        path,
        title="Bare",
        summary={},
        metrics={"m2m": metrics["m2m"]},
        model="m2m",
    )
    text = Page(path.read_text(encoding="utf-8")).text
    assert "Figures" not in text
    assert "Settings" not in text
    assert "beside it" not in text
    assert "interval" not in text


def test_numbers_have_about_four_digits():
    texts = [
        reporting._number(x) for x in (None, 0.12345, 12.345, 123.45, 12345.6)
    ]
    assert texts == ["–", "0.123", "12.35", "123.5", "12,346"]


def test_names_break_after_their_parts_and_are_escaped():
    assert reporting._breakable("a_<b>.c") == "a_<wbr>&lt;b&gt;.<wbr>c"


@pytest.fixture(scope="module")
def long_report(tmp_path_factory):
    """Many scenarios with long names, a wide figure, and intervals."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    tasks = ["gross_merchandise_value", "clicks"]
    scenarios = [f"sponsored_brand_video_on_page_{x}" for x in range(12)]
    y_true = rng.poisson(rng.gamma(0.5, 400.0, (240, 2))).astype(float)
    scenario = np.arange(240) % 12
    # The labels of the last scenario are all 0: cells without NMAE.
    y_true[scenario == 11] = 0
    forecasts = {
        "m2m": y_true * rng.uniform(0.5, 1.5, y_true.shape) + 1,
        "history_mean": y_true + 9,
    }
    metrics = evaluate_forecasts(y_true, forecasts, scenario, tasks, scenarios)
    intervals = {
        "lower": y_true - 1,
        "upper": y_true + 1,
        "below": np.full_like(y_true, 0.4),
        "up_to": np.full_like(y_true, 0.5),
    }
    interval = evaluate_intervals(y_true, intervals, scenario, tasks, scenarios)
    Figure(figsize=(12, 2)).savefig(folder / "cells.png")
    path = folder / "report.html"
    write_report(
        path,
        title="m2m on a_dataset_with_a_name_longer_than_a_phone_is_wide",
        summary={"test samples": 240},
        metrics=metrics,
        model="m2m",
        figures=[(folder / "cells.png", "Errors by task and scenario.")],
        settings={"model": {"share_meta_across_tasks": True}},
        interval=interval,
    )
    return path


def test_interval(long_report):
    text = Page(long_report.read_text(encoding="utf-8")).text
    assert "Inside the 80% interval 100.0% of the labels; aim: 80%" in text
    assert "fewer means too sure" in text


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser, long_report):
    page = browser.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(error))
    page.goto(long_report.as_uri())
    yield page
    assert errors == []
    page.close()


def column(page, index):
    cells = page.locator(f".cells tbody tr > :nth-child({index})")
    return cells.all_inner_texts()


@pytest.mark.slow
def test_a_click_sorts_and_another_one_turns_it_round(page):
    header = page.locator(".cells thead th").nth(6)
    button = header.get_by_role("button", name="NMAE")
    before = column(page, 7)
    button.click()
    assert header.get_attribute("aria-sort") == "ascending"
    up = column(page, 7)
    numbers = [float(x) for x in up[:-2]]
    assert numbers == sorted(numbers) and up != before
    button.click()
    assert header.get_attribute("aria-sort") == "descending"
    # Cells without a value stay last.
    assert column(page, 7) == [*up[:-2][::-1], "–", "–"]
    # Rows move as a whole, and one column alone is the sorted one.
    page.locator(".cells thead th").nth(1).get_by_role("button").click()
    assert header.get_attribute("aria-sort") is None
    names = column(page, 2)
    assert names == sorted(names)
    assert [i for i, x in enumerate(column(page, 7)) if x == "–"] == [
        i for i, x in enumerate(names) if x.endswith("_11")
    ]


@pytest.mark.slow
def test_numbers_sort_as_numbers_by_the_keyboard(page):
    button = page.locator(".cells thead th").nth(4).get_by_role("button")
    button.focus()
    page.keyboard.press("Enter")
    labels = [float(x.replace(",", "")) for x in column(page, 5)]
    assert labels == sorted(labels) and labels[-1] > 100


@pytest.mark.slow
def test_no_request_leaves_the_file(page, long_report):
    urls = []
    page.on("request", lambda request: urls.append(request.url))
    page.reload()
    assert page.locator("img").first.evaluate("image => image.naturalWidth")
    outside = [url for url in urls if not url.startswith("data:")]
    assert outside == [long_report.as_uri()]


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_only_boxes_scroll_sideways(page, width):
    page.set_viewport_size({"width": width, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    wide = page.locator(".scroll:has(.cells)").evaluate(
        "box => box.scrollWidth > box.clientWidth"
    )
    assert wide or width == 1280


@pytest.mark.slow
def test_contents_lead_to_every_part(page):
    for link in page.locator("nav a").all():
        target = page.locator(link.get_attribute("href"))
        assert target.inner_text() == link.inner_text()
    assert page.locator("nav a").count() == page.locator("h2").count() == 6


@pytest.mark.slow
def test_dark_scheme_and_paper(page):
    back = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(back) == "rgb(22, 24, 27)"
    page.emulate_media(color_scheme="dark", media="print")
    assert page.evaluate(back) == "rgb(255, 255, 255)"
    assert page.locator("nav").is_hidden()


@pytest.mark.slow
def test_reads_the_same_without_script(browser, long_report):
    page = browser.new_page(java_script_enabled=False)
    page.goto(long_report.as_uri())
    assert page.get_by_role("button").count() == 0
    assert len(column(page, 1)) == 24
    page.close()


def test_errors_leave_the_old_report(metrics, tmp_path):
    path, figure = tmp_path / "report.html", tmp_path / "figure.svg"
    path.write_text("old")
    figure.write_text("<svg/>")
    arguments = {
        "title": "x",
        "summary": {},
        "metrics": metrics,
        "model": "m2m",
    }
    with pytest.raises(ValueError, match="must be one of .*model='mmoe'"):
        write_report(path, **arguments | {"model": "mmoe"})
    with pytest.raises(ValueError, match=r"must be PNG files.*figure\.svg"):
        write_report(path, **arguments, figures=[(figure, "")])
    with pytest.raises(FileNotFoundError):
        write_report(path, **arguments, figures=[(tmp_path / "no.png", "")])
    assert path.read_text() == "old"

import html.parser

import numpy as np
import pytest

from m2m_tf.evaluation import evaluate_forecasts
from m2m_tf.report import write_report

# Only the first bytes of a figure are looked at.
PNG = b"\x89PNG\r\n\x1a\n made-up"


class Page(html.parser.HTMLParser):
    """Collects text, links and tags, and checks that tags are closed."""

    def __init__(self, text):
        super().__init__()
        self.words, self.links, self.tags, self.open = [], [], [], []
        self.feed(text)
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


def test_headline_comes_first(report):
    text = Page(report).text
    # Errors of 0.5 over labels of 1 and 3; twice as much for the naive one.
    assert text.index("NMAE 0.333 history_mean: 0.667 (-50 %)") < text.index(
        "All forecasts"
    )


def test_tables(report):
    page = Page(report)
    assert "m2m_median 0.000 0.000 –" in page.text
    # samples, zeros, mean label, then the model's and the naive NMAE.
    assert "clicks <coupon> 1 0% 3 0.167 0.333" in page.text
    assert "sales shelf 1 100% 0 – – 2.000 2.000" in page.text


def test_escapes_and_loads_nothing(report):
    page = Page(report)
    assert "<coupon>" not in report
    assert "<1>" not in report
    assert all(link.startswith("data:") for link in page.links)
    assert "data:image/png;base64," in report
    assert "script" not in page.tags
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

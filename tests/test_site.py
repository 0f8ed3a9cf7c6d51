"""The documentation site: built strictly, every link leads somewhere, and no
page asks another host or is wider than a phone."""

import ast
import functools
import html.parser
import http.server
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import urllib.parse

import pytest
from browser import chromium

import m2m_tf
from m2m_tf import layers
from m2m_tf.data import validation

ROOT = pathlib.Path(__file__).parent.parent
DESKTOP, PHONE = (1280, 900), (390, 844)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(ROOT / "zensical.toml", folder)
    for name in ("docs", "m2m_tf"):
        (folder / name).symlink_to(ROOT / name)
    # Docs are watched and written beside; their folder must be a real one.
    (folder / "docs").unlink()
    shutil.copytree(ROOT / "docs", folder / "docs")
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    # What reads docstrings only prints its warnings.
    assert "griffe:" not in told and "Warning" not in told, told
    return folder / "site"


class _Page(html.parser.HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.ids, self.links = set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.add(attributes.get("id"))
        for name in ("href", "src"):
            if name in attributes:
                self.links.append(attributes[name])


@pytest.fixture(scope="module")
def pages(site):
    """Path → what is on the page."""
    return {path: _Page(path) for path in sorted(site.rglob("*.html"))}


def target(site, page, link):
    """The file that a link within the site leads to."""
    path = urllib.parse.unquote(urllib.parse.urlsplit(link).path)
    if not path:
        return page
    # The page for addresses that do not exist names files from the root.
    base = site if path.startswith("/") else page.parent
    found = (base / path.lstrip("/")).resolve()
    return found / "index.html" if found.is_dir() else found


def test_every_link_within_the_site_leads_somewhere(site, pages):
    broken = []
    for page, content in pages.items():
        for link in content.links:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            found = target(site, page, link)
            anchor = urllib.parse.unquote(parts.fragment)
            if not found.exists() or (
                anchor and anchor not in pages[found].ids
            ):
                broken.append(f"{page.relative_to(site)}: {link}")
    assert not broken
    assert sum(len(content.links) for content in pages.values()) > 500


def test_every_public_name_is_documented(pages):
    ids = set().union(*(content.ids for content in pages.values()))
    settings = {"DatasetSpec", "RunConfig", "ModelSettings", "TrainingSettings"}
    for name in settings:
        assert name.lower() in ids, name
    public = [f"m2m_tf.layers.{name}" for name in layers.__all__]
    for name in vars(m2m_tf):
        value = getattr(m2m_tf, name)
        if callable(value) and name not in settings:
            public.append(f"{value.__module__}.{name}")
    assert len(public) > 25
    assert not [name for name in public if name not in ids]


def test_pages_keep_to_themselves_and_to_the_screen(site, pages):
    # Pictures to look at, if a folder for them is named.
    pictures = os.environ.get("M2M_TF_PICTURES")
    with served(site) as address, chromium() as browser:
        screen = browser.new_page()
        asked, errors = [], []
        screen.on("request", lambda request: asked.append(request.url))
        screen.on("pageerror", lambda error: errors.append(str(error)))
        for page in pages:
            name = page.relative_to(site).as_posix()
            screen.goto(f"{address}/{name}", wait_until="networkidle")
            for width, height in (DESKTOP, PHONE):
                screen.set_viewport_size({"width": width, "height": height})
                wide = screen.evaluate("document.documentElement.scrollWidth")
                assert wide <= width, f"{name} is {wide} px wide on {width}"
                if pictures:
                    path = pathlib.Path(pictures) / f"{width}" / f"{name}.png"
                    screen.screenshot(path=path, full_page=True)
    assert not errors
    assert len(asked) > len(pages)
    outside = {url for url in asked if not url.startswith((address, "data:"))}
    assert not {url for url in outside if not url.startswith("blob:")}


class served:
    """The site on a free port of this machine."""

    def __init__(self, folder):
        self._server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0),
            functools.partial(_Quiet, directory=str(folder)),
        )

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever).start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def reference():
    """docs/reference.py, as a module."""
    spec = importlib.util.spec_from_file_location(
        "reference", ROOT / "docs" / "reference.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reference_is_that_of_the_code(reference):
    for name, text in reference.pages().items():
        stored = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert stored == text, f"run `python docs/reference.py` for {name}"


def test_every_problem_of_tables_is_shown():
    page = (ROOT / "docs" / "data_contract.md").read_text(encoding="utf-8")
    messages = [
        first_words(call)
        for call in ast.walk(
            ast.parse(pathlib.Path(validation.__file__).read_text())
        )
        if isinstance(call, ast.Call)
        and getattr(call.func, "id", None) in ("Problem", "_find")
    ]
    messages = [text for text in messages if text]
    assert len(messages) > 10
    assert not [text for text in messages if text not in page]


def first_words(call):
    """The literal beginning of the message of a problem."""
    for argument in call.args:
        if isinstance(argument, ast.JoinedStr):
            argument = argument.values[0]
        if isinstance(argument, ast.Constant):
            text = str(argument.value).split(";")[0].strip()
            if " " in text:
                return text
    return None


def test_classes_and_tests_of_the_paper_s_table_exist():
    page = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| .+ \| \[.+\]\S+<br>`(tests/.+)`<br>`(\w+)` \|$", page, re.M
    )
    assert len(rows) > 15
    for path, name in rows:
        functions = {
            node.name
            for node in ast.parse((ROOT / path).read_text()).body
            if isinstance(node, ast.FunctionDef)
        }
        assert name in functions, f"{path} has no {name}"
    assert len(rows) == page.count("tests/")
    # The classes link into the site, whose build is strict.

"""Every snippet of README.md and of docs/ runs, and runs as printed.

What a page may hold, and what is done with it, page by page, from top to
bottom, in a folder that holds the clinics' tables and a short run of theirs:

- `python`: executed; the blocks of a page share their names.
- `pycon`: executed, and what is printed is compared (`...` fits anything).
- `sh`: each command is a process; a server answers on free ports, and the
  blocks after it ask those.
- `text` after `sh`: what the last command printed (`...` fits anything).
- `yaml` that begins with `# some/file.yaml`: written there; other `yaml` is a
  part of a spec or config, and must be valid in the clinics'.

A block after the comment `<!-- not run: why -->` is only counted.
"""

import contextlib
import dataclasses
import doctest
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import make_clinics
import pytest
import yaml
from local_server import running
from markdown_it import MarkdownIt
from tables import write_clinic_tables

from m2m_tf.config import DatasetSpec, RunConfig, StudyConfig
from pipelines import cli

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Blocks that cannot run here, by page. A test compares: none is left out by
# accident.
NOT_RUN = {
    "README.md": 1,  # Minutes of training, and these very tests.
    "docs/how_to/scale.md": 1,  # The demo's model.
    "docs/how_to/serve.md": 2,  # Docker; a rollback from the only version.
    "docs/tensorboard.md": 1,  # A server; has tests of its own.
}
_REASON = re.compile(r"<!-- not run: .+ -->\s*")
_COMPARED = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
_SECONDS = 600  # Most that a command may take.


@dataclasses.dataclass(frozen=True)
class Block:
    """A code block of a page; `line` is that of its first line of code."""

    language: str
    text: str
    line: int
    runs: bool


def blocks_of(page):
    runs = True
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            language = token.info or "none"
            yield Block(language, token.content, token.map[0] + 2, runs)
        runs = not (
            token.type == "html_block" and _REASON.fullmatch(token.content)
        )


def name_of(page):
    return page.relative_to(ROOT).as_posix()


WITH_BLOCKS = [page for page in PAGES if any(b.runs for b in blocks_of(page))]


class Reader:
    """Somebody who types a page's blocks in, one after another."""

    def __init__(self, page, folder, cleanup):
        self._page = page
        self._folder = folder
        self._cleanup = cleanup
        self._names = {"__name__": "__main__"}
        self._addresses = {}
        self._printed = None

    def read(self, block):
        printed, self._printed = self._printed, None
        text = block.text
        for address, real in self._addresses.items():
            text = text.replace(address, real)
        match block.language:
            case "python":
                self._run_python(text, block.line)
            case "pycon":
                self._run_session(text, block.line)
            case "sh":
                for command in commands_of(text):
                    self._run_command(command)
            case "text" if printed is not None:
                check = doctest.OutputChecker().check_output
                assert check(text, printed, _COMPARED), printed
            case "yaml":
                self._take_yaml(text)
            case other:
                pytest.fail(
                    f"{name_of(self._page)}, line {block.line}: nothing is "
                    f"known to do with a block of {other!r} here"
                )

    def _run_python(self, text, line):
        # Empty lines in front give an error the page's own line numbers.
        code = "\n" * (line - 1) + text
        exec(compile(code, str(self._page), "exec"), self._names)

    def _run_session(self, text, line):
        session = doctest.DocTestParser().get_doctest(
            text, self._names, name_of(self._page), str(self._page), line - 1
        )
        session.globs = self._names
        report = []
        doctest.DocTestRunner(optionflags=_COMPARED).run(
            session, out=report.append, clear_globs=False
        )
        assert not report, "".join(report)

    def _run_command(self, command):
        if command.startswith("m2m-tf serve "):
            server = self._cleanup.enter_context(
                running(*shlex.split(command)[2:])
            )
            self._addresses["localhost:8501"] = server.addresses[
                "rest"
            ].removeprefix("http://")
            self._addresses["localhost:8500"] = server.addresses[
                "grpc"
            ].removeprefix("grpc://")
            return
        self._printed = run_command(command, self._folder)

    def _take_yaml(self, text):
        first = text.splitlines()[0]
        if re.fullmatch(r"# \S+\.yaml", first):
            path = self._folder / first.removeprefix("# ")
            path.write_text(text, encoding="utf-8")
            shorten(path)
            values = yaml.safe_load(text)
        else:
            values = yaml.safe_load(text)
            path = self._folder / "clinics" / "fragment.yaml"
            base = "spec.yaml" if is_spec(values) else "clinics.yaml"
            whole = yaml.safe_load((path.parent / base).read_text()) | values
            path.write_text(yaml.safe_dump(whole))
        if is_spec(values):
            DatasetSpec.load(path)
        elif isinstance(values.get("data"), dict):
            StudyConfig.load(path)
        else:
            RunConfig.load(path)


def is_spec(values):
    fields = {field.name for field in dataclasses.fields(DatasetSpec)}
    return set(values) <= fields


def commands_of(text):
    lines = text.replace("\\\n", " ").splitlines()
    return [x for x in lines if x.strip() and not x.startswith("#")]


def run_command(command, folder):
    """Runs one command as a shell would; returns what it printed."""
    binaries = pathlib.Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=os.environ
        | {
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    for path in (folder / "clinics").glob("*.yaml"):
        shorten(path)
    return done.stdout


def shorten(path):
    """A config that trains one network for a few epochs, and nothing else."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    training = values.get("training", {})
    if training.get("epochs", 0) <= 6:
        return
    training |= {"epochs": 6, "members": 1}
    for key in ("evaluation", "search"):
        values.pop(key, None)
    path.write_text(yaml.safe_dump(values), encoding="utf-8")


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A working folder with a finished run, and a copy of it to go back to."""
    folder = tmp_path_factory.mktemp("docs") / "work"
    folder.mkdir()
    (folder / "examples").symlink_to(ROOT / "examples")
    # What `make demo` would leave, for README's first lines of Python.
    write_clinic_tables(folder / "runs" / "demo" / "tables")
    run_command("python examples/make_clinics.py clinics", folder)
    run_command("m2m-tf run clinics/clinics.yaml", folder)
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy, symlinks=True)
    return folder, copy


@pytest.fixture
def folder(finished_run, monkeypatch):
    """The working folder as it was; always the same path, so no step is due."""
    folder, copy = finished_run
    shutil.rmtree(folder)
    shutil.copytree(copy, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name_of)
def test_blocks_run_as_printed(page, folder):
    with contextlib.ExitStack() as cleanup:
        reader = Reader(page, folder, cleanup)
        for block in blocks_of(page):
            if block.runs:
                reader.read(block)


def test_blocks_that_do_not_run_are_known():
    found = {
        name_of(page): sum(not block.runs for block in blocks_of(page))
        for page in PAGES
    }
    assert {page: count for page, count in found.items() if count} == NOT_RUN


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_within_the_text_exist(page):
    for token in MarkdownIt().enable("table").parse(page.read_text()):
        for child in token.children or ():
            words = shlex.split(child.content) if is_command(child) else []
            if len(words) > 2:
                cli._parser().parse_args(words[1:])


def is_command(token):
    return token.type == "code_inline" and token.content.startswith("m2m-tf ")


def test_readme_s_spec_and_config_are_those_of_the_example(tmp_path):
    make_clinics.main(str(tmp_path))
    shown = [b for b in blocks_of(ROOT / "README.md") if b.language == "yaml"]
    for block, name in zip(shown, ("spec.yaml", "clinics.yaml"), strict=True):
        made = yaml.safe_load((tmp_path / name).read_text(encoding="utf-8"))
        values = yaml.safe_load(block.text)
        for key in ("start", "end"):
            if key in values:
                values[key] = values[key].isoformat()
        assert values == made

"""The documentation is built without a warning, and says what is so."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click
import pytest

import daskgmm
from daskgmm import plotting
from daskgmm.cli.main import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    page
    for page in DOCS.rglob("*.md")
    if not {"_build", "notebooks"} & set(page.relative_to(DOCS).parts[:-1])
)
TOLD = [*PAGES, ROOT / "README.md", *ROOT.glob("*/README.md")]
RUN = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(?:\$ |    )(?:\w+=\S+ )*daskgmm ((?:.*\\\n)*.*)", re.MULTILINE)


def name(page):
    return str(page.relative_to(ROOT))


def run_page(page, folder, monkeypatch):
    """All examples of a page, one after the other, as a reader would."""
    monkeypatch.chdir(folder)
    found = RUN.findall(page.read_text(encoding="utf-8"))
    known = {"__name__": "page"}
    for i, code in enumerate(found):
        exec(compile(code, f"{page.name}, example {i + 1}", "exec"), known)
    return len(found)


def test_a_beginner_gets_what_is_shown(tmp_path, monkeypatch, capsys):
    assert run_page(DOCS / "getting_started.md", tmp_path, monkeypatch) > 3
    assert (tmp_path / "mixture.png").exists()
    assert "[0.5 0.5] True" in capsys.readouterr().out


WITH_EXAMPLES = [
    page
    for page in PAGES
    if RUN.search(page.read_text(encoding="utf-8")) and page.stem != "getting_started"
]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=name)
def test_examples_run_from_top_to_bottom(page, tmp_path, monkeypatch):
    run_page(page, tmp_path, monkeypatch)


@pytest.mark.slow
def test_the_example_of_the_readme_is_a_script(tmp_path):
    """It starts processes, which import it: saved to a file, it must run as well."""
    [code] = RUN.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    (tmp_path / "script.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.startswith("[[")
    assert (tmp_path / "model.zarr").is_dir()


def commands(page):
    """The commands that a page shows, without what the shell does."""
    for line in COMMAND.findall(page.read_text(encoding="utf-8")):
        words = shlex.split(line.replace("\\\n", " "), comments=True)
        stops = [i for i, word in enumerate(words) if word in ("|", "&&", ">", ";")]
        yield words[: stops[0]] if stops else words


def test_commands_that_are_shown_are_commands():
    n_commands = 0
    for page in TOLD:
        for words in commands(page):
            if not words or words[0] in ("COMMAND", "--help", "--version", "…"):
                continue
            command = main.get_command(click.Context(main), words[0])
            assert command is not None, f"{name(page)}: daskgmm {shlex.join(words)}"
            context = click.Context(command, info_name=words[0])
            try:
                command.make_parser(context).parse_args(words[1:])
            except click.UsageError as error:
                pytest.fail(f"{name(page)}: daskgmm {shlex.join(words)}: {error}")
            n_commands += 1
    assert n_commands > 40


def test_messages_that_are_explained_are_those_of_the_package():
    """Between what differs from time to time, marked by …, they are literal."""
    package = Path(daskgmm.__file__).parent
    trees = [ast.parse(path.read_text("utf-8")) for path in package.rglob("*.py")]
    said = {
        node.value
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    shown = re.findall(r"^### `(.*)`$", page, re.MULTILINE)
    assert len(shown) > 30
    for message in shown:
        pieces = [part.strip() for part in message.split("…")]
        longest = max(pieces, key=len)
        assert len(longest) >= 12, message
        assert any(longest in text for text in said), message


class _Page(HTMLParser):
    """Names and links of a page."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links = set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids |= {found[key] for key in ("id", "name") if key in found}
        self.links += [found[key] for key in ("href", "src") if found.get(key)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as `make docs` does."""
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E"]
        + ["-d", str(out / "doctrees"), "-b", "html", str(DOCS), str(out / "html")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return out / "html"


@pytest.mark.slow
def test_links_of_the_site_lead_somewhere(site):
    found = [path for path in site.rglob("*.html") if "_static" not in path.parts]
    pages = {path: _Page(path) for path in found}
    assert len(pages) > 60
    # Not all file systems tell small letters from capitals.
    assert len({str(path).lower() for path in found}) == len(found)
    broken = []
    for path, page in pages.items():
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = path
            if url.path:
                target = (path.parent / unquote(url.path)).resolve()
            if not target.exists():
                broken.append((str(path.relative_to(site)), link))
            elif url.fragment and target in pages:
                is_there = unquote(url.fragment) in pages[target].ids
                broken += [] if is_there else [(str(path.relative_to(site)), link)]
    assert not broken


@pytest.mark.slow
def test_all_that_is_public_is_described(site):
    api = site / "api" / "generated"
    described = {path.stem.removesuffix("-function") for path in api.glob("*.html")}
    public = {f"daskgmm.{name}" for name in daskgmm.__all__}
    public |= {f"daskgmm.plotting.{name}" for name in plotting.__all__}
    assert public <= described


def test_all_notebooks_are_shown():
    told = (DOCS / "notebooks.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^notebooks/(\w+)$", told, re.MULTILINE)) == {
        path.stem for path in (ROOT / "examples").glob("*.ipynb")
    }

"""Pages that every project has agree with what they are about."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from rattler_build import RattlerBuildError, Stage0Recipe, VariantConfig

from daskgmm.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_who_cites_names_this_version():
    said = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert said["version"] == PROJECT["version"]
    assert said["license"] == PROJECT["license"]
    assert said["title"].endswith(PROJECT["description"])


@pytest.mark.parametrize(
    "form", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yaml"))
)
def test_forms_for_issues_are_forms(form):
    schema = "vendor.github-issue-forms"
    subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, form],
        check=True,
        capture_output=True,
    )


def test_pages_are_there_and_found_from_the_first_one():
    told = (ROOT / "README.md").read_text()
    for page in ("ARCHITECTURE.md", "CHANGELOG.md", "LICENSE", "CONTRIBUTING.md"):
        assert f"]({page})" in told
        assert (ROOT / page).exists()


ADDRESSES = runpy.run_path(str(ROOT / ".ci" / "addresses.py"))


def test_on_a_package_index_nothing_leads_to_files_that_are_not_there():
    shown = ADDRESSES["shown"]((ROOT / "README.md").read_text(), None)
    assert shown.startswith("# daskgmm\n")
    assert "- Documentation: `make docs` builds it." in shown
    targets = re.findall(r"\]\(([^)]*)\)", shown)
    assert targets and all(target.startswith("http") for target in targets)


@pytest.mark.parametrize(
    "remote, page",
    [
        ("https://github.com/some/daskgmm.git", "https://github.com/some/daskgmm"),
        ("https://name:token@github.com/some/x/", "https://github.com/some/x"),
        ("git@github.com:some/daskgmm.git", "https://github.com/some/daskgmm"),
        ("ssh://git@gitlab.com:22/a/b/c.git", "https://gitlab.com/a/b/c"),
        ("/home/me/daskgmm", None),
        ("file:///home/me/daskgmm", None),
        ("https://git.of-a-firm.example/daskgmm", None),
        ("http://github.com/some/daskgmm", None),
        ("", None),
    ],
)
def test_only_an_address_that_everybody_reaches_is_published(remote, page):
    assert ADDRESSES["of_remote"](remote) == page


@pytest.mark.parametrize(
    "remote, blob, raw",
    [
        (
            "git@github.com:some/daskgmm.git",
            "https://github.com/some/daskgmm/blob/HEAD/",
            "https://github.com/some/daskgmm/raw/HEAD/",
        ),
        (
            "https://gitlab.com/some/daskgmm",
            "https://gitlab.com/some/daskgmm/-/blob/HEAD/",
            "https://gitlab.com/some/daskgmm/-/raw/HEAD/",
        ),
        ("/home/me/daskgmm", None, None),
    ],
)
def test_what_is_built_leads_to_where_it_was_cloned_from(tmp_path, remote, blob, raw):
    checkout = tmp_path / "checkout"
    package = checkout / "daskgmm" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.touch()
    for file in ("pyproject.toml", "README.md", "LICENSE", ".ci/addresses.py"):
        (checkout / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, checkout / file)
    for words in (["init", "--quiet"], ["remote", "add", "origin", remote]):
        subprocess.run(["git", *words], cwd=checkout, check=True)
    # The wheel is built of the source distribution, which has no remote.
    build = [sys.executable, "-m", "build", "--no-isolation", str(checkout)]
    subprocess.run(build, check=True, capture_output=True)
    [wheel] = (checkout / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        [name] = (one for one in file.namelist() if one.endswith("/METADATA"))
        built = message_from_bytes(file.read(name))
    links = dict(one.split(", ", 1) for one in built.get_all("Project-URL", []))
    readme = built.get_payload(decode=True).decode()
    told = re.findall(r"(!?)\[[^]]*\]\(([^)]*)\)", readme)
    assert all(target.startswith("https://") for _, target in told)
    pictures = [target for picture, target in told if picture]
    if blob is None:
        assert not links and not pictures
        return
    assert set(links) == {"Source", "Documentation", "Changelog", "Issues"}
    assert links["Documentation"] == f"{blob}docs/index.md"
    assert pictures == [f"{raw}docs/_static/mixture.png"]
    led = [target.removeprefix(blob) for _, target in told if target.startswith(blob)]
    led.append(links["Changelog"].removeprefix(blob))
    assert len(led) > 10 and all((ROOT / one).exists() for one in led)
    assert (ROOT / pictures[0].removeprefix(raw)).exists()


RECIPE = ROOT / "conda" / "recipe.yaml"
OF_CONDA = {"dask": "dask-core", "matplotlib": "matplotlib-base"}
"""Packages that have another name there."""


def test_the_recipe_for_conda_is_one_and_asks_for_what_the_package_does():
    [variant] = Stage0Recipe.from_file(RECIPE).render(VariantConfig())
    found = variant.recipe.to_dict()
    assert found["package"]["version"] == PROJECT["version"]
    asked = dict(one.split() for one in found["requirements"]["run"])
    assert asked.pop("python") == PROJECT["requires-python"]
    assert asked == _as_conda(PROJECT["dependencies"])
    extras = PROJECT["optional-dependencies"]
    besides = [
        one for name in ("plot", "parquet", "s3", "xarray") for one in extras[name]
    ]
    besides = [one for one in besides if ">=" in one]
    constrained = dict(one.split() for one in found["requirements"]["run_constraints"])
    assert constrained == _as_conda(besides)


def _as_conda(requirements):
    parsed = map(Requirement, requirements)
    return {OF_CONDA.get(one.name, one.name): str(one.specifier) for one in parsed}


def test_a_recipe_with_a_mistyped_key_is_none(tmp_path):
    bad = tmp_path / "recipe.yaml"
    bad.write_text(RECIPE.read_text().replace("noarch:", "no_arch:"))
    with pytest.raises(RattlerBuildError):
        Stage0Recipe.from_file(bad)


def _anchors(page):
    """What parts of a page are called in links."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", title.lower()) for title in titles]
    return {title.replace(" ", "-") for title in plain}


@pytest.mark.parametrize(
    "page", sorted([*ROOT.glob("*.md"), *ROOT.glob("[!.d]*/README.md")]), ids=str
)
def test_links_of_pages_lead_somewhere(page):
    """Those of the site are looked at where it is built."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        other = page.parent / place if place else page
        assert other.exists(), target
        if anchor and other.suffix == ".md":
            assert anchor in _anchors(other), target


def test_an_image_is_made_of_what_is_there(tmp_path):
    """Extras that are installed, commands that are run; what is copied is enough."""
    text = (ROOT / "cluster_configs" / "Containerfile").read_text()
    copied = re.findall(r"^COPY (.*) /src(\S*)$", text, re.MULTILINE)
    for names, target in copied:
        for name in names.split():
            into = tmp_path / "src" / target.strip("/")
            if (ROOT / name).is_dir():
                shutil.copytree(
                    ROOT / name, into, ignore=shutil.ignore_patterns("__pycache__")
                )
            else:
                into.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, into)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*build, "-w", str(tmp_path), str(tmp_path / "src")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("*.whl"))
    extras = re.search(r"^ARG EXTRAS=(\S+)", text, re.MULTILINE).group(1).split(",")
    assert (
        {"s3", "gcs", "azure"} <= set(extras) <= set(PROJECT["optional-dependencies"])
    )
    [command] = re.findall(r"^RUN daskgmm (\w+)", text, re.MULTILINE)
    assert command in COMMANDS
    # Compiled before another user runs it, and where NUMBA_CACHE_DIR says.
    cache = re.search(r"^ENV NUMBA_CACHE_DIR=(\S+)", text, re.MULTILINE)
    assert f"chmod -R a+rwX {cache.group(1)}" in text
    assert cache.start() < text.index("RUN daskgmm") < text.index("\nUSER ")


OF_CHART = {
    "scheduler": {"image", "resources", "serviceAccountName", "replicas", "extraArgs"},
    "worker": {"image", "resources", "serviceAccountName", "replicas", "env", "mounts"},
    "jupyter": {"enabled"},
    "webUI": {"ingress"},
}
"""Some values of Dask's chart for Helm (values.yaml of dask/helm-chart)."""


def test_values_for_helm_are_those_of_the_chart():
    """Helm takes any others in silence."""
    file = ROOT / "cluster_configs" / "kubernetes" / "helm-values.yaml"
    values = yaml.safe_load(file.read_text())
    assert values["jupyter"] == {"enabled": False}
    for part, its in values.items():
        assert set(its) <= OF_CHART[part]
    images = [values[part]["image"] for part in ("scheduler", "worker")]
    assert images[0] == images[1] and set(images[0]) == {"repository", "tag"}
    assert images[0]["repository"].endswith("/daskgmm")
    for part in ("scheduler", "worker"):
        wanted = values[part]["resources"]
        assert wanted["requests"] == wanted["limits"] and set(wanted["limits"]) == {
            "cpu",
            "memory",
        }

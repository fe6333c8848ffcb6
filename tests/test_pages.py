"""Pages that every project has agree with what they are about."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from rattler_build import RattlerBuildError, Stage0Recipe, VariantConfig

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


def test_on_a_package_index_nothing_leads_to_files_that_are_not_there():
    done = subprocess.run(
        [sys.executable, "-m", "hatch_fancy_pypi_readme"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    shown = done.stdout
    assert shown.startswith("# daskgmm\n")
    assert "- Documentation: `make docs` builds it." in shown
    targets = re.findall(r"\]\(([^)]*)\)", shown)
    assert targets and all(target.startswith("http") for target in targets)


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

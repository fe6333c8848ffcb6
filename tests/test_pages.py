"""Pages that every project has agree with what they are about."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

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

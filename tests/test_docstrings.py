"""Examples in docstrings do what they say."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from itertools import pairwise

import pytest
from matplotlib import pyplot as plt

import daskgmm
import daskgmm.plotting

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(daskgmm.__path__, "daskgmm.")
    if not module.name.endswith("__main__")
)


def examples_of(name):
    module = importlib.import_module(name)
    return [test for test in doctest.DocTestFinder().find(module) if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_examples_do_what_they_say(name, tmp_path, monkeypatch):
    """Each in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    said = []
    for test in examples_of(name):
        runner.run(test, out=said.append)
    plt.close("all")
    assert not runner.failures, "".join(said)


USED = [its for its in vars(daskgmm.plotting).values() if inspect.isfunction(its)]
USED += [daskgmm.GaussianMixture, daskgmm.load, daskgmm.open_rows, daskgmm.Progress]


@pytest.mark.parametrize("used", USED, ids=lambda its: its.__name__)
def test_what_people_use_has_an_example(used):
    assert ">>> " in inspect.getdoc(used)


CLASSES = [name for name in daskgmm.__all__ if inspect.isclass(getattr(daskgmm, name))]


@pytest.mark.parametrize("name", CLASSES)
def test_parameters_and_attributes_are_described(name):
    """A type alone does not say what something is."""
    lines = inspect.getdoc(getattr(daskgmm, name)).splitlines()
    for line, after in pairwise([*lines, ""]):
        if re.match(r"\w[\w, ]* : ", line):
            assert after.startswith("    "), line

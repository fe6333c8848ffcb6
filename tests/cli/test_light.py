"""Help, and what is mistyped, are answered before anything is loaded for the work."""

from __future__ import annotations

import subprocess
import sys

import pytest

from daskgmm.cli import demo as of_demo
from daskgmm.cli import options, select
from daskgmm.cli.main import COMMANDS
from daskgmm.demo import run
from daskgmm.em.search import CRITERIA
from daskgmm.mixtures.covariance import SHAPES

HEAVY = ("numba", "sklearn", "distributed", "zarr", "scipy", "pandas", "pyarrow")
ASK = """
import sys
from daskgmm.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print("loaded:", *(m for m in {heavy} if m in sys.modules), file=sys.stderr)
sys.exit(code)
"""


def ask(*arguments):
    return subprocess.run(
        [sys.executable, "-c", ASK.format(heavy=HEAVY), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_nothing_large(command):
    done = ask(*command.split(), "--help")
    assert done.returncode == 0
    assert "Usage: " in done.stdout
    assert done.stderr.splitlines()[-1] == "loaded:"


MISTAKES = [
    (("fitt",), "No such command"),
    (("fit", "rows"), "Missing argument 'MODEL'"),
    (("fit", "rows", "model", "-k", "0"), "not in the range"),
    (("fit", "rows", "rows", "-k", "2"), "MODEL"),
    (("fit", "rows", "m", "-k", "2", "--weights-from", "process"), "--bayesian"),
    (("select", "rows", "m", "-k", "3:a"), "none of these"),
    (
        ("select", "rows", "m", "-k", "3", "--bayesian", "--criterion", "bic"),
        "held_out",
    ),
    (("predict", "m", "rows", "out.csv"), "would be no CSV"),
    (("predict", "m", "rows", "out/labels.NPY/"), "would be no NPY"),
    (("predict", "m", "rows", "m"), "OUT"),
    (("predict", "m", "rows", "o", "--kind", "proba", "--outliers", "0.1"), "--kind"),
    (("predict", "m", "rows", "o", "--filter", "x >> 3"), "operator '>>'"),
    (("predict", "m", "rows", "o", "--filter", "x =< 3"), "operator '=<'"),
    (("score", "m", "rows", "--nan", "drop"), "'error', 'skip'"),
    (("sample", "m", "out.json", "-n", "3"), "would be no JSON"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_so_do_mistakes(tmp_path, arguments, message):
    done = ask(*arguments)
    assert done.returncode == 2, done.stderr
    *said, loaded = done.stderr.splitlines()
    assert message in " ".join(said)
    assert loaded == "loaded:"


def test_what_options_know_is_what_the_library_has():
    assert tuple(SHAPES) == options.SHAPES
    assert select.CRITERIA == CRITERIA
    assert (of_demo.GIGABYTES, of_demo.BUDGET) == (run.GIGABYTES, run.BUDGET)

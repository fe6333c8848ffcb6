"""``daskgmm select``: which mixture is chosen, what it says, and what it refuses."""

from __future__ import annotations

import json
import re
from functools import partial

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

from daskgmm import GaussianMixture, MixtureSearch, load
from daskgmm.cli.main import main
from daskgmm.cli.select import select
from daskgmm.display import words
from daskgmm.mixtures.covariance import SHAPES

N, D, K = 3000, 2, 3
PASS = re.compile(
    r"^pass +\d+  \d+ of (\d+) candidates have ended  [\d,]+ rows/s  "
    r"(?:\S+ k?i?B read|all rows in memory)  "
    r"\S+ m?s(?:, (?:about|at most) \S+ m?s to go)?"
    r"(?:, best so far: (.*) \(\w+ \S+\))?$",
    re.M,
)
PARAMETERS = ("weights_", "means_", "covariances_", "precisions_cholesky_")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Three groups, far apart, and each long in a direction of its own."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(N, D)) @ [[2.0, 1.5], [0.0, 0.7]]
    rows[: N // 3] = rows[: N // 3] * [1, -1] + 15
    rows[N // 3 : N // 2] = rows[N // 3 : N // 2, ::-1] - 15
    path = str(tmp_path_factory.mktemp("data") / "rows.zarr")
    zarr.create_array(path, data=rng.permutation(rows), chunks=(700, D))
    return path


@pytest.fixture
def run(run):
    return partial(run, "select")


def run_alone(*args):
    return CliRunner().invoke(main, ["select", *map(str, args)])


def assert_same(found, expected):
    for name in (*PARAMETERS, "lower_bound_", "n_iter_"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def rows_of_table(said):
    lines = said.splitlines()
    [head] = [i for i, line in enumerate(lines) if line.startswith("components  ")]
    [end] = [i for i, line in enumerate(lines) if line.startswith("The search took ")]
    return [re.split("  +", line.strip()) for line in lines[head:end]]


def test_the_best_is_saved_as_a_fit_alone_finds_it(run, store, tmp_path):
    shapes = ("--covariance-type", "full,diag")
    result = run(store, tmp_path / "m", "-k", "1:5", *shapes, "--seed", 4)
    assert result.exit_code == 0, result.output
    found = load(tmp_path / "m")
    expected = GaussianMixture(K, random_state=4).fit(store)
    assert found.get_params() == expected.get_params()
    assert_same(found, expected)
    assert result.stdout.splitlines()[-2:] == [
        f"The best has 3 components and full covariances (bic {found.bic(store):.3f}).",
        f"The model is in {tmp_path / 'm'}.",
    ]


def test_each_pass_has_a_line_and_each_candidate_a_row(run, store, tmp_path):
    shapes = ("--covariance-type", "tied,full")
    result = run(store, tmp_path / "m", "-k", "3,1", *shapes, "--seed", 0)
    search = MixtureSearch((1, 3), covariance_type=("full", "tied"), random_state=0)
    search.fit(store)
    passes, names = PASS.findall(result.stdout), ["covariance type", "bic"]
    assert len(passes) == search.n_passes_
    assert passes[0] == ("4", "")
    assert passes[-1] == ("4", "3 components and full covariances")
    assert "4 of 4 candidates have ended" in result.stdout
    head, *rows = rows_of_table(result.stdout)
    assert head == ["components", *names, "iterations", "status"]
    its = search.results_
    assert rows == [
        [
            str(its["param_n_components"][i]),
            its["param_covariance_type"][i],
            f"{its['bic'][i]:.3f}",
            str(its["n_iter"][i]),
            "converged",
        ]
        for i in np.argsort(its["rank"])
    ]
    lines = result.stdout.splitlines()[len(passes) + 1 :][:4]
    assert len({line.index(row[1]) for line, row in zip(lines, rows, strict=True)}) == 1


def test_programs_are_told_of_all_candidates(run, store, tmp_path):
    args = ("-k", "1:4", "--covariance-type", "full", "--criterion", "icl")
    result = run(store, tmp_path / "m", *args, "--seed", 0, "--json")
    assert result.exit_code == 0, result.output
    search = MixtureSearch(
        range(1, 5), covariance_type="full", criterion="icl", random_state=0
    ).fit(store)
    told = json.loads(result.stdout)
    assert told.pop("seconds") > 0
    candidates = told.pop("candidates")
    assert told == {
        "model": str(tmp_path / "m"),
        "best": {"components": K, "covariance_type": "full"},
        "criterion": "icl",
        "value": search.best_score_,
        "converged": True,
        "passes": search.n_passes_,
        "rows_skipped": 0,
    }
    assert [its["rank"] for its in candidates] == [1, 2, 3, 4]
    assert sorted(its["components"] for its in candidates) == [1, 2, 3, 4]
    i = search.best_index_
    assert candidates[0] == {
        "rank": 1,
        "components": K,
        "covariance_type": "full",
        **{name: search.results_[name][i] for name in ("bic", "aic", "icl")},
        "held_out": None,
        "bound": search.best_estimator_.lower_bound_,
        "iterations": search.best_estimator_.n_iter_,
        "passes": search.best_estimator_.n_passes_,
        "status": "converged",
        "error": "",
    }
    assert len(PASS.findall(result.stderr)) == search.n_passes_
    assert len(rows_of_table(result.stderr)) == 5


def test_rows_held_out_are_a_criterion(run, store, tmp_path):
    args = ("-k", "1,3", "--covariance-type", "full", "--criterion", "held_out")
    result = run(store, tmp_path / "m", *args, "--held-out", 0.3, "--seed", 0, "--json")
    assert result.exit_code == 0, result.output
    search = MixtureSearch(
        (1, 3),
        covariance_type="full",
        criterion="held_out",
        held_out=0.3,
        random_state=0,
    ).fit(store)
    told = json.loads(result.stdout)
    assert told["value"] == search.best_score_ == told["candidates"][0]["held_out"]
    assert rows_of_table(result.stderr)[0][2:4] == ["held_out", "bic"]
    assert f"full covariances (held_out {told['value']:.6f})." in result.stderr
    assert_same(load(tmp_path / "m"), search.best_estimator_)


def test_options_reach_the_candidates(run, store, tmp_path):
    weights = np.random.default_rng(0).integers(0, 3, size=N).astype(float)
    zarr.create_array(str(tmp_path / "w"), data=weights, chunks=(700,))
    options = {
        "tol": 1e-5,
        "reg_covar": 1e-5,
        "max_iter": 40,
        "n_init": 2,
        "init_params": "k-means++",
        "init_size": 500,
        "arithmetic": "double",
    }
    flags = [(f"--{name.replace('_', '-')}", v) for name, v in options.items()]
    flags += [("--seed", 4), ("--weights", tmp_path / "w"), ("--nan", "skip")]
    flags += [("--missing-chunks", "fill"), ("--covariance-type", "diag")]
    args = [*sum(flags, ()), "--no-accelerate"]
    result = run(store, tmp_path / "m", "-k", "2:3", *args)
    assert result.exit_code == 0, result.output
    options |= {"random_state": 4, "nan": "skip", "missing_chunks": "fill"}
    options |= {"covariance_type": "diag", "accelerate": False}
    found = load(tmp_path / "m")
    assert options.items() <= found.get_params().items()
    expected = GaussianMixture(**found.get_params()).fit(store, sample_weight=weights)
    assert_same(found, expected)


def test_losers_are_stopped_when_told(run, store, tmp_path):
    args = ("-k", "3:4", "--covariance-type", "full", "--tol", 1e-6, "--seed", 0)
    ended = {}
    for option in ("--json", "--stop-losers"):
        result = run(store, tmp_path / "m", *args, "--json", "--overwrite", option)
        assert result.exit_code == 0, result.output
        candidates = json.loads(result.stdout)["candidates"]
        ended[option] = [(its["components"], its["status"]) for its in candidates]
    assert ended["--json"] == [(3, "converged"), (4, "converged")]
    assert ended["--stop-losers"] == [(3, "converged"), (4, "outdone")]


def test_candidates_that_fail_are_told_with_the_reason(run, tmp_path):
    """Of three points, all covariances but that of one component are singular."""
    points = np.tile([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], (100, 1))
    zarr.create_array(str(tmp_path / "points"), data=points)
    args = ("-k", "1,3", "--covariance-type", "full", "--reg-covar", 0, "--seed", 0)
    result = run(tmp_path / "points", tmp_path / "m", *args, "--json")
    assert result.exit_code == 0, result.output
    best, failed = json.loads(result.stdout)["candidates"]
    assert (best["components"], best["status"]) == (1, "converged")
    assert (failed["components"], failed["status"]) == (3, "failed")
    assert failed["bic"] is None and failed["error"]
    assert f"1 failed. The first of them: {failed['error']}" in result.stderr
    assert "The best has 1 component and full covariance (bic" in result.stderr


def test_it_says_when_the_best_did_not_converge(run, store, tmp_path):
    args = ("-k", "3", "--covariance-type", "full", "--tol", 0, "--max-iter", 2)
    result = run(store, tmp_path / "m", *args, "--seed", 0)
    assert result.exit_code == 0, result.output
    assert "It did not converge in 2 iterations." in result.stdout
    assert "Raise --max-iter or --tol, or try other starts." in result.stdout
    assert result.stderr == ""


def test_it_says_how_many_rows_were_left_out(run, tmp_path):
    rows = np.random.default_rng(0).normal(size=(200, D))
    rows[3, 1] = np.nan
    zarr.create_array(str(tmp_path / "gaps"), data=rows)
    args = ("-k", "1", "--nan", "skip", "--seed", 0)
    result = run(tmp_path / "gaps", tmp_path / "m", *args)
    assert "1 rows with NaN were left out." in result.stdout
    assert result.stderr == ""


def test_a_search_that_was_broken_off_goes_on(run, store, tmp_path, monkeypatch):
    args = ["-k", "2:3", "--covariance-type", "full,diag", "--seed", 0]
    args += ["--init-params", "random", "--tol", 0, "--max-iter", 7]
    kept = ["--checkpoint", tmp_path / "c", "--checkpoint-interval", 1]
    as_it_is = words.search_line

    def broken(progress, criterion):
        if progress.n_pass == 4:
            raise OSError("the power failed")
        return as_it_is(progress, criterion)

    with monkeypatch.context() as patched:
        patched.setattr(words, "search_line", broken)
        result = run(store, tmp_path / "m", *args, *kept)
    assert result.exit_code == 1
    assert len(PASS.findall(result.stdout)) == 3
    assert not (tmp_path / "m").exists()
    result = run(store, tmp_path / "m", *args, *kept)
    assert result.exit_code == 0, result.output
    assert "Resuming from the checkpoint after pass 4." in result.stdout
    whole = run(store, tmp_path / "whole", *args)
    assert rows_of_table(result.stdout) == rows_of_table(whole.stdout)
    assert_same(load(tmp_path / "m"), load(tmp_path / "whole"))


def test_in_a_terminal_there_is_a_bar_and_a_table(run, store, tmp_path):
    terminal = {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "COLUMNS": "120"}
    args = ("-k", "1,4", "--covariance-type", "full", "--seed", 0, "--tol", 1e-5)
    result = run(store, tmp_path / "m", *args, env=terminal)
    assert result.exit_code == 0, result.output
    assert re.search(r" ───+", result.stdout)
    assert "━" in result.stdout
    assert re.search(r"^ +4 +full +[\d.]+ +\d+ +converged", result.stdout, re.M)


# --- what is refused ------------------------------------------------------------------


def test_a_model_is_replaced_only_when_told(run, store, tmp_path):
    model = str(tmp_path / "m")
    GaussianMixture(2, random_state=0).fit(store).save(model)
    before = load(model).means_
    # There is no such store, nor is one looked for.
    result = run_alone(tmp_path / "nowhere", model, "-k", 3)
    assert result.exit_code == 1
    assert result.stderr == f"Error: {model} exists: pass --overwrite to replace it.\n"
    np.testing.assert_array_equal(load(model).means_, before)
    result = run(store, model, "-k", 3, "--overwrite")
    assert result.exit_code == 0, result.output
    assert load(model).n_components == 3


def test_what_is_no_model_is_never_replaced(store, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("irreplaceable")
    result = run_alone(store, tmp_path / "notes", "-k", 2, "--overwrite")
    assert result.exit_code == 1
    assert "is not a model" in result.stderr
    assert (tmp_path / "notes" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("model", "checkpoint"), [("rows", "c"), ("m", "rows/c"), ("m", "m/c"), ("w", "c")]
)
def test_what_is_read_and_written_is_kept_apart(tmp_path, model, checkpoint):
    args = [tmp_path / "rows", tmp_path / model, "-k", 2, "--overwrite"]
    args += ["--weights", tmp_path / "w", "--checkpoint", tmp_path / checkpoint]
    result = run_alone(*args)
    assert result.exit_code == 2
    assert "Choose another place" in result.stderr


def parse(*args):
    return select.make_context("select", ["rows", "model", *args]).params


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("7", [7]),
        ("1:10", range(1, 11)),
        ("4:4", [4]),
        ("1,2,5", [1, 2, 5]),
        ("2:10:2", [2, 4, 6, 8, 10]),
        ("2:9:3", [2, 5, 8]),
        ("1:3,8", [1, 2, 3, 8]),
        ("8, 1:3 ,2:10:4", [1, 2, 3, 6, 8, 10]),
        ("3,3,1", [1, 3]),
    ],
)
def test_numbers_of_components(text, numbers):
    assert parse("-k", text)["n_components"] == tuple(numbers)
    assert parse("--components", text)["n_components"] == tuple(numbers)


@pytest.mark.parametrize(
    "text",
    ["", "0", "0:3", "-1", "3:1", "1:", ":3", "1::3", "1:2:3:4", "2:10:0"]
    + ["1,,2", "1,", "many", "1.5", "²", "1 2", "1-10", "9" * 5000],
)
def test_numbers_of_components_that_are_none(text):
    result = run_alone("rows", "model", f"--components={text}")
    assert result.exit_code == 2
    assert f"{text!r} is none of these: a number from 1; FIRST:LAST" in result.stderr


def test_numbers_of_components_that_are_too_many():
    result = run_alone("rows", "model", "-k", "1:999999999")
    assert result.exit_code == 2
    assert "'1:999999999' is more than 10,000 numbers" in result.stderr


@pytest.mark.parametrize(
    ("given", "shapes"),
    [
        ([], tuple(SHAPES)),
        (["--covariance-type", "tied"], ("tied",)),
        (["--covariance-type", "diag, full,diag"], ("full", "diag")),
    ],
)
def test_types_of_covariance(given, shapes):
    assert parse("-k", "2", *given)["covariance_types"] == shapes


@pytest.mark.parametrize(("text", "name"), [("full,round", "round"), ("full,", "")])
def test_types_of_covariance_that_are_none(text, name):
    result = run_alone("rows", "model", "-k", 2, "--covariance-type", text)
    assert result.exit_code == 2
    assert f"{name!r} is no covariance type: name one or more of full" in result.stderr


@pytest.mark.parametrize(
    "args",
    [("--held-out", 0), ("--held-out", 1), ("--criterion", "luck"), ("--max-iter", 0)],
)
def test_other_options_that_are_none(args):
    result = run_alone("rows", "model", "-k", 2, *args)
    assert result.exit_code == 2
    assert f"Invalid value for '{args[0]}'" in result.stderr

"""Compiled code reads and writes nothing but what it was given."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import COVARIANCE_TYPES, random_mixture
from hypothesis import given, settings
from hypothesis import strategies as st

from daskgmm.kernel import passes, tile
from daskgmm.kernel.layout import Columns, Plan, RowView, as_rows, readonly
from daskgmm.mixtures.e_step import EStep, plan
from daskgmm.mixtures.e_step import message as message_of
from daskgmm.mixtures.single import shift_of


def compile_both():
    """Before calls are drawn, by the kernel's help: that would be taken for slow."""
    for dtype in (np.float64, np.float32):
        nothing = readonly(np.zeros((1, 1), dtype=dtype))
        scratch = np.zeros(0, dtype=dtype)
        single = passes._no_plan(dtype)._replace(means=nothing)
        with pytest.raises(ValueError, match="The kernel was given"):
            passes._run(passes._COLLECT, single, scratch=scratch)


@pytest.fixture(scope="module", autouse=True)
def _compiled():
    compile_both()


def with_upper(mixture):
    """A plan to ask about few rows, however small its matrices are."""
    packed = plan(mixture, n_rows=0).plan
    factors = mixture.factors if packed.dense.size else mixture.factors[np.newaxis]
    nothing = np.empty((0, 0))
    return EStep(packed._replace(dense=nothing, pooled=nothing, upper=factors))


def make_call(task, covariance_type, d, sizes, n, dtypes, layout, weighted, seed):
    """Arguments of a call that is in order, by name."""
    rng = np.random.default_rng(seed)
    mixtures = [random_mixture(rng, covariance_type, k, d) for k in sizes]
    if task == "evaluate":
        mixtures = mixtures[:1]
    of_rows, of_plan = dtypes
    in_single = of_plan is np.float32
    shifts = [shift_of(mixtures[0])] * len(mixtures) if in_single else None
    message = message_of(mixtures, shifts).e_steps[0]
    has_matrices = message.plan.dense.size or message.plan.pooled.size
    if task == "evaluate" and has_matrices and d >= tile.MIN_UPPER and not in_single:
        message = with_upper(mixtures[0])
    k = len(message.plan.means)
    x = rng.normal(size=(n, d)).astype(of_rows)
    if layout == "column":
        x = np.asfortranarray(x)
    elif layout == "columns":
        apart = np.zeros((d, n + 3), dtype=x.dtype)
        apart[:, 1 : n + 1] = x.T
        x = Columns(tuple(apart[j, 1 : n + 1] for j in rng.permutation(d)))
    call = {
        "plan": message.compiled_plan,
        "rows": as_rows(x),
        "scratch": np.zeros(
            tile.scratch_size(message.plan), dtype=message.plan.means.dtype
        ),
    }
    if task == "evaluate":
        outputs = {
            "labels": np.zeros(n, dtype=np.int64),
            "responsibilities": np.zeros((n, k)),
            "log_prob": np.zeros(n),
        }
        wanted = [["labels"], ["log_prob"], ["responsibilities", "log_prob"]][seed % 3]
        return call | {name: outputs[name] for name in wanted}
    call["sums"] = np.zeros(message.padded_size)
    # With the last block, what was added up is told by the same call.
    if task == "collect" or (task == "accumulate" and seed % 2):
        size = len(passes.collect(message.compiled_plan, call["sums"]))
        call["out"] = np.zeros(size)
    if task == "collect":
        return call
    return call | ({"weights": readonly(rng.uniform(size=n))} if weighted else {})


def run(task, call):
    number = {
        "find": passes._FIND,
        "accumulate": passes._ACCUMULATE,
        "collect": passes._COLLECT,
        "evaluate": passes._EVALUATE,
    }[task]
    return passes._run(number, **call)


DTYPES = [
    (np.float64, np.float64),
    (np.float32, np.float64),
    (np.float32, np.float32),
]
"""Of rows, and of what is computed."""


def calls(tasks=("accumulate", "collect", "evaluate"), least_rows=1):
    return st.builds(
        lambda task, **rest: (task, make_call(task, **rest)),
        task=st.sampled_from(tasks),
        covariance_type=st.sampled_from(COVARIANCE_TYPES),
        d=st.sampled_from([1, 2, 3, 4, 5, 9, 32, 37]),
        sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3),
        n=st.sampled_from([least_rows, 2, 7, 31, 300]),
        dtypes=st.sampled_from(DTYPES),
        layout=st.sampled_from(["row", "column", "columns"]),
        weighted=st.booleans(),
        seed=st.integers(0, 2**31),
    )


@settings(max_examples=60)
@given(call=calls(least_rows=0))
def test_a_call_that_is_in_order_is_run(call):
    assert run(*call) == -1


@settings(max_examples=100)
@given(call=calls(("accumulate",)), n_before=st.integers(0, 2))
def test_what_is_told_with_the_last_block_is_what_is_collected(call, n_before):
    _, call = call
    told = call.pop("out", None)
    if told is None:
        return
    twice = {**call, "sums": call["sums"].copy()}
    for _ in range(n_before):
        run("accumulate", call)
        run("accumulate", twice)
    run("accumulate", call)
    run("accumulate", {**twice, "out": told})
    assert np.abs(told).max() > 0.0
    np.testing.assert_array_equal(told, passes.collect(call["plan"], call["sums"]))


def resized(array, axis, size):
    """An array of the same kind with another size along one axis."""
    shape = list(array.shape)
    shape[axis] = size
    other = np.zeros(shape, dtype=array.dtype)
    return other if array.flags.writeable else readonly(other)


def broken(draw, task, call):
    """The call with one argument of another size, and the argument's name."""
    plan_, rows = call["plan"], call["rows"]
    arrays = {f"plan.{name}": array for name, array in plan_._asdict().items()}
    arrays |= {
        name: call[name]
        for name in (*passes._ARGUMENTS[-7:],)
        if name in call and name != "scratch"
    }
    name = draw(st.sampled_from([*sorted(arrays), "scratch", "rows"]))
    if name == "rows":
        return name, {**call, "rows": broken_rows(draw, rows, task)}
    if name == "scratch":
        fewer = draw(st.integers(0, len(call["scratch"]) - 1))
        return name, {**call, "scratch": call["scratch"][:fewer]}
    array = arrays[name]
    axis = draw(st.integers(0, array.ndim - 1))
    sizes = st.integers(0, 2 * array.shape[axis] + 3)
    size = draw(sizes.filter(lambda size: size != array.shape[axis]))
    other = resized(array, axis, size)
    if name.startswith("plan."):
        field = name.removeprefix("plan.")
        return name, {**call, "plan": plan_._replace(**{field: other})}
    return name, {**call, name: other}


def broken_rows(draw, rows, task):
    """Rows that reach beyond their memory, or do not fit the plan."""
    flat = "double" if len(rows.double) else "single"
    length = len(getattr(rows, flat))
    some = [
        {flat: getattr(rows, flat)[: draw(st.integers(0, length - 1))]},
        {"n_rows": rows.n_rows + length + draw(st.integers(1, 9))},
        {"n_rows": -draw(st.integers(1, 2**62))},
        {"n_columns": -draw(st.integers(1, 9))},
        {
            "double": readonly(np.zeros(length)),
            "single": readonly(np.zeros(length, dtype=np.float32)),
        },
    ]
    if task != "find":
        some.append({"n_columns": rows.n_columns + draw(st.integers(1, 9))})
    if len(rows.columns):
        place = draw(st.integers(0, len(rows.columns) - 1))
        for wrong in (-1, length - rows.n_rows + 1, 2**62, -(2**62)):
            columns = rows.columns.copy()
            columns[place] = wrong
            some.append({"columns": columns})
        some.append({"columns": rows.columns[:-1]} if len(rows.columns) > 1 else {})
    else:
        some.append({"columns": np.zeros(rows.n_columns + 1, dtype=np.int64)})
        if rows.n_rows > 1:
            some += [{"step": -1}, {"step": length}, {"step": 2**62}]
    changes = [change for change in some if change]
    return rows._replace(**changes[draw(st.integers(0, len(changes) - 1))])


def is_harmless(name, task, call, other):
    """Whether what was changed makes another call that is in order."""
    if name in ("rows", "scratch") and task == "collect":
        return True  # uses none
    is_optional = name == "out" and task == "accumulate"
    if is_optional or name in ("weights", "labels", "responsibilities", "log_prob"):
        return len(other[name]) == 0  # is not given then
    if name.startswith("plan."):
        field = name.removeprefix("plan.")
        before, after = getattr(call["plan"], field), getattr(other["plan"], field)
        # An array of another form: without rows, its columns do not matter.
        by_row = ("dense", "upper", "pooled", "axes", "axis_means")
        return before.size == after.size == 0 and field in by_row
    return False


@settings(max_examples=400)
@given(call=calls(), data=st.data())
def test_what_does_not_fit_is_refused_before_anything_is_read(call, data):
    task, call = call
    name, other = broken(data.draw, task, call)
    if is_harmless(name, task, call, other):
        return
    written = [
        array
        for key, array in other.items()
        if isinstance(array, np.ndarray) and array.flags.writeable and key != "scratch"
    ]
    for array in written:
        array[...] = 77
    with pytest.raises(ValueError, match="The kernel was given"):
        run(task, other)
    assert all((array == 77).all() for array in written)


@settings(max_examples=200)
@given(call=calls(tasks=("find",)), data=st.data())
def test_rows_beyond_their_memory_are_not_looked_at(call, data):
    _, call = call
    rows = broken_rows(data.draw, call["rows"], "find")
    if rows.n_columns < 0 or rows.n_rows * rows.n_columns == 0:
        return
    with pytest.raises(ValueError, match="The kernel was given rows"):
        passes.first_not_finite(rows)


@pytest.mark.parametrize(
    "starts", [[0, 2, 1, 5], [0, 0, 5], [1, 5], [0, 6], [0, 4], [0, -1, 5], [5], []]
)
def test_runs_follow_each_other(starts):
    rng = np.random.default_rng(0)
    message = plan(random_mixture(rng, "full", 5, 2))
    wrong = readonly(np.array(starts, dtype=np.int64))
    plan_ = message.compiled_plan._replace(starts=wrong)
    with pytest.raises(ValueError, match="plan.starts"):
        passes.collect(plan_, np.zeros(message.padded_size))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("weights", np.ones(5, dtype=np.float32)),
        ("weights", np.ones((5, 1))),
        ("weights", np.ones(10)[::2]),
        ("sums", np.zeros(10)[::2]),
        ("scratch", np.zeros(10_000, dtype=np.float32)),
        ("scratch", readonly(np.zeros(10_000))),
        ("plan", "offsets"),
        ("rows", "columns"),
    ],
)
def test_arrays_of_another_kind_are_refused(name, wrong):
    """Nothing is compiled for them, and nothing converted."""
    call = make_call("accumulate", "full", 3, [2], 5, DTYPES[0], "row", True, 0)
    if isinstance(wrong, str):
        single = readonly(np.zeros(2, dtype=np.float32))
        name, call = wrong, {**call, name: call[name]._replace(**{wrong: single})}
    else:
        call = {**call, name: wrong}
    with pytest.raises(TypeError, match=f"The kernel was given {name} as"):
        run("accumulate", call)


def test_single_precision_takes_rows_of_its_own_alone():
    call = make_call("accumulate", "full", 3, [2], 5, DTYPES[2], "row", True, 0)
    run("accumulate", call)
    call["rows"] = as_rows(np.zeros((5, 3)))
    with pytest.raises(ValueError, match="The kernel was given rows"):
        run("accumulate", call)
    single = call["plan"]
    for name in ("offsets", "shift", "dense"):
        doubles = readonly(getattr(single, name).astype(np.float64))
        plan_ = single._replace(**{name: doubles})
        with pytest.raises(TypeError, match=f"The kernel was given {name} as"):
            run("accumulate", {**call, "plan": plan_})


def test_rows_of_other_dtypes_and_unlike_columns_are_refused():
    for dtype in (np.int64, np.float16, ">f8", object):
        with pytest.raises(TypeError, match="float64 or float32"):
            as_rows(np.zeros((3, 2), dtype=dtype))
    with pytest.raises(ValueError, match="Column 1"):
        as_rows(Columns((np.zeros(3), np.zeros(2))))
    with pytest.raises(ValueError, match="Column 1"):
        as_rows(Columns((np.zeros(3), np.zeros(3, dtype=np.float32))))
    apart = np.arange(6.0)[::2], np.arange(3.0)
    rows = as_rows(Columns(apart))
    assert passes.first_not_finite(rows) == -1
    np.testing.assert_array_equal(rows.double, np.stack(apart, axis=1).ravel())


# --- memory that ends where an array does ---------------------------------------------


def guarded(array, at_end):
    """A copy right before, or right behind, memory that must not be touched."""
    if not array.size:
        return array
    page = mmap.PAGESIZE
    size = -(-array.nbytes // page) * page
    memory = mmap.mmap(-1, size + 2 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for place in (address, address + page + size):
        assert (
            ctypes.CDLL(None, use_errno=True).mprotect(
                ctypes.c_void_p(place), ctypes.c_size_t(page), 0
            )
            == 0
        ), os.strerror(ctypes.get_errno())
    offset = page + (size - array.nbytes if at_end else 0)
    flat = np.frombuffer(memory, array.dtype, array.size, offset)
    flat[:] = array.ravel()
    copy = flat.reshape(array.shape)
    return copy if array.flags.writeable else readonly(copy)


def all_guarded(value, at_end):
    if isinstance(value, np.ndarray):
        return guarded(value, at_end)
    if isinstance(value, Plan | RowView):
        return type(value)._make(all_guarded(each, at_end) for each in value)
    return value


def touch_only_what_is_given():
    """Run calls, in order or not, on such memory: a wrong access ends the process."""
    compile_both()

    @settings(max_examples=150, deadline=None, database=None)
    @given(call=calls(("find", "accumulate", "collect", "evaluate"), 0))
    def in_order(call):
        task, call = call
        call.pop("weights" if task != "accumulate" else "", None)
        for at_end in (True, False):
            given_ = {name: all_guarded(v, at_end) for name, v in call.items()}
            assert run(task, given_) == -1

    @settings(max_examples=150, deadline=None, database=None)
    @given(call=calls(), data=st.data(), at_end=st.booleans())
    def broken_ones(call, data, at_end):
        task, call = call
        name, other = broken(data.draw, task, call)
        if not is_harmless(name, task, call, other):
            given_ = {name: all_guarded(v, at_end) for name, v in other.items()}
            with pytest.raises(ValueError, match="The kernel was given"):
                run(task, given_)

    in_order()
    broken_ones()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="protects pages of memory")
@pytest.mark.parametrize("bits", [128, 256, 512])
def test_no_byte_beside_what_is_given_is_touched(bits):
    environment = {**os.environ, "DASKGMM_VECTOR_BITS": str(bits)}
    script = (
        f"import sys; sys.path += {[*map(str, Path(__file__).parents[:2])]!r}\n"
        "from test_passes import touch_only_what_is_given\n"
        "touch_only_what_is_given()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]

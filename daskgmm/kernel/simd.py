"""Registers of several float64, for compiled kernels.

Inside a function that Numba compiles, a *vector* is as many float64 as a register of
this machine holds (`LANES`), and a *register tile* is a tuple of vectors. What is done
to a tile becomes one instruction per vector, whereas a loop over numbers is vectorised
and kept in registers only where the compiler happens to see how. Where tiles of
different lengths meet, the shorter one is repeated. Memory is an array of one
dimension and a place in it; bounds are not checked.

A vector has 512 bits where the processor has AVX-512, 256 where it has AVX, and else
128, as with ARM's NEON; the environment variable DASKGMM_VECTOR_BITS, read when this
module is loaded, says otherwise. Any width is right on any machine, as LLVM makes two
instructions of one where registers are too short, but slower than its own. All that
follows from the width is `LANES`, a power of two, and `COLUMNS`. With two lanes:

- `transpose` of LANES vectors is one exchange of halves, `zip1` and `zip2` on ARM;
- a sum over lanes is one addition, of a vector and its halves exchanged, and those of
  LANES vectors are folded in one step into one vector;
- a register tile of four rows has `COLUMNS` = 4, as with AVX-512: NEON has 32 registers
  too, 16 for the tile and 8 for what is multiplied. It holds 4 × 8 numbers.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.datamodel import PrimitiveModel, register_default
from numba.core.registry import cpu_target
from numba.extending import intrinsic

TARGET: Final = cpu_target.target_context.codegen().magic_tuple()
"""The processor that Numba compiles for: this one, unless it was told otherwise."""

_VARIABLE: Final = "DASKGMM_VECTOR_BITS"
_COLUMNS: Final = {128: 4, 256: 3, 512: 4}


def _vector_bits() -> int:
    """Bits of a vector: what the environment says, or else what suits the processor."""
    if given := os.environ.get(_VARIABLE):
        if given not in map(str, _COLUMNS):
            allowed = ", ".join(map(str, _COLUMNS))
            raise ValueError(
                f"The environment variable {_VARIABLE} must be one of {allowed}, and "
                f"is {given!r}. Unset it to have what suits this machine."
            )
        return int(given)
    features = TARGET[2].split(",")
    return 512 if "+avx512f" in features else 256 if "+avx" in features else 128


VECTOR_BITS: Final = _vector_bits()
LANES: Final = VECTOR_BITS // 64
"""Numbers in a vector."""
COLUMNS: Final = _COLUMNS[VECTOR_BITS]
"""Vectors in a row of a register tile of four rows: what the registers hold.

There are 32 with AVX-512 and NEON, and 16 with AVX.
"""

_DOUBLE: Final = ir.DoubleType()
_VECTOR: Final = ir.VectorType(_DOUBLE, LANES)
_BITS: Final = ir.VectorType(ir.IntType(64), LANES)
_INDEX: Final = ir.IntType(32)


class _VectorType(types.Type):  # type: ignore[misc]
    """`LANES` float64."""

    def __init__(self) -> None:
        super().__init__(name=f"float64x{LANES}")


@register_default(_VectorType)
class _VectorModel(PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, type_: Any) -> None:
        super().__init__(manager, type_, _VECTOR)


_vector: Final = _VectorType()


def _tile(length: int) -> Any:
    """Type of a register tile of so many vectors."""
    return types.UniTuple(_vector, length)


def _unpack(builder: Any, tile: Any) -> list[Any]:
    return [builder.extract_value(tile, i) for i in range(tile.type.count)]


def _place(context: Any, builder: Any, type_: Any, array: Any, at: Any) -> Any:
    """A pointer to array[at]; what it points to is never asked of it."""
    data = context.make_array(type_)(context, builder, array).data
    return builder.gep(data, [at], source_etype=context.get_data_type(type_.dtype))


def _places(
    context: Any, builder: Any, type_: Any, args: Any, n_columns: int, length: int
) -> Any:
    """Where the vectors of a tile stand: rows a step apart, columns side by side."""
    array, at, step = args
    for i in range(length):
        column = i % n_columns
        aside = builder.add(at, at.type(column * LANES))
        yield _place(context, builder, type_, array, aside)
        if column == n_columns - 1:
            at = builder.add(at, step)


def _lanes(value: Any, kind: Any = _VECTOR) -> Any:
    """A constant vector that repeats one number."""
    return ir.Constant(kind, [value] * LANES)


def _splat(builder: Any, number: Any) -> Any:
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    one = builder.insert_element(undefined, number, _INDEX(0))
    mask = ir.Constant(ir.VectorType(_INDEX, LANES), [0] * LANES)
    return builder.shuffle_vector(one, undefined, mask)


def _fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """The sum a b + c, rounded once where the machine has an instruction for it."""
    return _call(builder, "fmuladd", a, b, c)


def _call(builder: Any, name: str, *vectors: Any) -> Any:
    """Call LLVM's own function of that name."""
    type_ = ir.FunctionType(_VECTOR, [_VECTOR] * len(vectors))
    full = f"llvm.{name}.v{LANES}f64"
    function = cgutils.get_or_insert_function(builder.module, type_, full)
    return builder.call(function, vectors)


def _choose(builder: Any, x: Any, limit: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", x, limit), a, b)


def _each(operation: Callable[..., Any]) -> Any:
    """Typing and code of an operation on tiles, vector by vector."""

    def typed(*tiles: Any) -> Any:
        length = max(len(tile) for tile in tiles)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            inputs = [_unpack(builder, arg) for arg in args]
            vectors = [
                operation(builder, *(each[i % len(each)] for each in inputs))
                for i in range(length)
            ]
            return context.make_tuple(builder, signature.return_type, vectors)

        return _tile(length)(*tiles), generate

    return typed


@intrinsic
def add(_context: Any, a: Any, b: Any) -> Any:
    """The sum a + b."""
    return _each(lambda builder, a, b: builder.fadd(a, b))(a, b)


@intrinsic
def subtract(_context: Any, a: Any, b: Any) -> Any:
    """The difference a - b."""
    return _each(lambda builder, a, b: builder.fsub(a, b))(a, b)


@intrinsic
def multiply(_context: Any, a: Any, b: Any) -> Any:
    """The product a b."""
    return _each(lambda builder, a, b: builder.fmul(a, b))(a, b)


@intrinsic
def divide(_context: Any, a: Any, b: Any) -> Any:
    """The quotient a / b."""
    return _each(lambda builder, a, b: builder.fdiv(a, b))(a, b)


@intrinsic
def root(_context: Any, x: Any) -> Any:
    """The square root of x."""
    return _each(lambda builder, x: _call(builder, "sqrt", x))(x)


@intrinsic
def multiply_add(_context: Any, a: Any, b: Any, c: Any) -> Any:
    """The sum a b + c, rounded once where the machine can."""
    return _each(_fused)(a, b, c)


@intrinsic
def maximum(_context: Any, a: Any, b: Any) -> Any:
    """The larger of a and b; b if either is NaN."""
    return _each(lambda builder, a, b: _choose(builder, a, b, a, b))(a, b)


@intrinsic
def where_above(_context: Any, x: Any, limit: Any, a: Any, b: Any) -> Any:
    """The choice of a where x > limit, else b."""
    return _each(_choose)(x, limit, a, b)


@intrinsic
def power_of_two(_context: Any, shifted: Any) -> Any:
    """2^n, n the whole number in the lowest bits."""

    def generate(builder: Any, x: Any) -> Any:
        biased = builder.add(builder.bitcast(x, _BITS), _lanes(1023, _BITS))
        return builder.bitcast(builder.shl(biased, _lanes(52, _BITS)), _VECTOR)

    return _each(generate)(shifted)


_ROOT_HALF: Final = 0x3FE6A09E667F3BCD


def _exponent_bits(builder: Any, x: Any) -> Any:
    above = builder.sub(builder.bitcast(x, _BITS), _lanes(_ROOT_HALF, _BITS))
    return builder.lshr(above, _lanes(52, _BITS))


@intrinsic
def exponent(_context: Any, x: Any) -> Any:
    """The n of x = 2^n f with √½ ≤ f < √2, for x ≥ 1."""

    def generate(builder: Any, x: Any) -> Any:
        # As the lowest bits of 2^52 the whole number is a float.
        bits = builder.or_(_exponent_bits(builder, x), _lanes(0x433 << 52, _BITS))
        return builder.fsub(builder.bitcast(bits, _VECTOR), _lanes(2.0**52))

    return _each(generate)(x)


@intrinsic
def fraction(_context: Any, x: Any) -> Any:
    """The f of x = 2^n f with √½ ≤ f < √2, for x ≥ 1."""

    def generate(builder: Any, x: Any) -> Any:
        power = builder.shl(_exponent_bits(builder, x), _lanes(52, _BITS))
        bits = builder.sub(builder.bitcast(x, _BITS), power)
        return builder.bitcast(bits, _VECTOR)

    return _each(generate)(x)


@intrinsic
def constant(_context: Any, number: Any) -> Any:
    """A register tile of one vector that repeats a number."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = _splat(builder, args[0])
        return context.make_tuple(builder, signature.return_type, [vector])

    return _tile(1)(types.float64), generate


@intrinsic(prefer_literal=True)
def zeros(_context: Any, length: Any) -> Any:
    """A register tile of `length` vectors of zeros."""

    def generate(context: Any, builder: Any, signature: Any, _args: Any) -> Any:
        type_ = signature.return_type
        return context.make_tuple(builder, type_, [_lanes(0.0)] * len(type_))

    return _tile(length.literal_value)(length), generate


@intrinsic(prefer_literal=True)
def load(
    _context: Any, array: Any, at: Any, step: Any, n_rows: Any, n_columns: Any
) -> Any:
    """A register tile whose rows stand at array[at + i step]; float32 are converted."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        type_, of_array = signature.return_type, signature.args[0]
        columns = signature.args[4].literal_value
        wide = ir.VectorType(context.get_data_type(of_array.dtype), LANES)
        vectors = []
        for place in _places(context, builder, of_array, args[:3], columns, len(type_)):
            place = builder.bitcast(place, wide.as_pointer())
            vector = builder.load(place, align=4, typ=wide)
            if wide != _VECTOR:
                vector = builder.fpext(vector, _VECTOR)
            vectors.append(vector)
        return context.make_tuple(builder, type_, vectors)

    type_ = _tile(n_rows.literal_value * n_columns.literal_value)
    return type_(array, types.intp, types.intp, n_rows, n_columns), generate


@intrinsic
def prefetch(_context: Any, array: Any, at: Any) -> Any:
    """Begin to fetch array[at] into the second-level cache."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _place(context, builder, signature.args[0], *args)
        byte = ir.IntType(8).as_pointer()
        type_ = ir.FunctionType(ir.VoidType(), [byte, _INDEX, _INDEX, _INDEX])
        function = cgutils.get_or_insert_function(
            builder.module, type_, "llvm.prefetch.p0"
        )
        read, locality, data = _INDEX(0), _INDEX(2), _INDEX(1)
        builder.call(function, [builder.bitcast(place, byte), read, locality, data])
        return context.get_dummy_value()

    return types.none(array, types.intp), generate


@intrinsic(prefer_literal=True)
def splat(_context: Any, array: Any, at: Any, step: Any, length: Any) -> Any:
    """Vectors that each repeat one number: array[at], array[at + step] and so on."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        type_, of_array = signature.return_type, signature.args[0]
        at, vectors = args[1], []
        for _ in range(len(type_)):
            place = _place(context, builder, of_array, args[0], at)
            number = builder.load(place, typ=context.get_data_type(of_array.dtype))
            vectors.append(_splat(builder, number))
            at = builder.add(at, args[2])
        return context.make_tuple(builder, type_, vectors)

    type_ = _tile(length.literal_value)
    return type_(array, types.intp, types.intp, length), generate


@intrinsic(prefer_literal=True)
def store(
    _context: Any, tile: Any, array: Any, at: Any, step: Any, n_columns: Any
) -> Any:
    """Write the rows of a register tile to array[at + i step]."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        of_array, columns = signature.args[1], signature.args[4].literal_value
        vectors = _unpack(builder, args[0])
        places = _places(context, builder, of_array, args[1:4], columns, len(vectors))
        for vector, place in zip(vectors, places, strict=True):
            place = builder.bitcast(place, _VECTOR.as_pointer())
            builder.store(vector, place, align=8)
        return context.get_dummy_value()

    return types.none(tile, array, types.intp, types.intp, n_columns), generate


@intrinsic
def add_to_rows(_context: Any, numbers: Any, tile: Any) -> Any:
    """numbers[i] + tile[i, j]."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        left, vectors = (_unpack(builder, arg) for arg in args)
        columns = len(vectors) // len(left)
        sums = [builder.fadd(left[i // columns], v) for i, v in enumerate(vectors)]
        return context.make_tuple(builder, signature.return_type, sums)

    return tile(numbers, tile), generate


@intrinsic
def add_outer(_context: Any, left: Any, right: Any, tile: Any) -> Any:
    """left[i] right[j] + tile[i, j]: tile holds rows i of columns j."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, b, c = (_unpack(builder, arg) for arg in args)
        vectors = [
            _fused(builder, u, v, c[i * len(b) + j])
            for i, u in enumerate(a)
            for j, v in enumerate(b)
        ]
        return context.make_tuple(builder, signature.return_type, vectors)

    return tile(left, right, tile), generate


@intrinsic(prefer_literal=True)
def row_sums(_context: Any, tile: Any, n_rows: Any) -> Any:
    """The sum of each row's vectors."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors, n = _unpack(builder, args[0]), len(signature.return_type)
        columns = len(vectors) // n
        rows = [vectors[i * columns : (i + 1) * columns] for i in range(n)]
        sums = [functools.reduce(builder.fadd, row) for row in rows]
        return context.make_tuple(builder, signature.return_type, sums)

    return _tile(n_rows.literal_value)(tile, n_rows), generate


@intrinsic
def add_squares(_context: Any, tile: Any, sums: Any) -> Any:
    """Squares of a tile, summed over its rows, + sums."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors, sums = (_unpack(builder, arg) for arg in args)
        for i, vector in enumerate(vectors):
            j = i % len(sums)
            sums[j] = _fused(builder, vector, vector, sums[j])
        return context.make_tuple(builder, signature.return_type, sums)

    return sums(tile, sums), generate


@intrinsic
def add_scaled_squares(
    _context: Any, right: Any, left: Any, scales: Any, tile: Any
) -> Any:
    """((right[j] - left[i]) scales[i])² + tile[i, j]."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, m, f, c = (_unpack(builder, arg) for arg in args)
        vectors = []
        # One entry after the other: few registers are needed at a time.
        for i, (mean, scale) in enumerate(zip(m, f, strict=True)):
            for j, number in enumerate(x):
                z = builder.fmul(builder.fsub(number, mean), scale)
                vectors.append(_fused(builder, z, z, c[i * len(x) + j]))
        return context.make_tuple(builder, signature.return_type, vectors)

    return tile(right, left, scales, tile), generate


@intrinsic
def transpose(_context: Any, tile: Any) -> Any:
    """LANES vectors, transposed."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = _unpack(builder, args[0])
        group = LANES // 2
        while group:
            # Swap the off-diagonal quarters of each square of 2 group × 2 group.
            low, high = [], []
            for first in range(0, LANES, 2 * group):
                low += [first + i for i in range(group)]
                low += [LANES + first + i for i in range(group)]
                high += [first + group + i for i in range(group)]
                high += [LANES + first + group + i for i in range(group)]
            for i in range(LANES):
                if not i & group:
                    a, b = vectors[i], vectors[i + group]
                    vectors[i] = _shuffled(builder, a, b, low)
                    vectors[i + group] = _shuffled(builder, a, b, high)
            group //= 2
        return context.make_tuple(builder, signature.return_type, vectors)

    return tile(tile), generate


def _shuffled(builder: Any, a: Any, b: Any, picks: list[int]) -> Any:
    mask = ir.Constant(ir.VectorType(_INDEX, len(picks)), picks)
    return builder.shuffle_vector(a, b, mask)


def _halved(builder: Any, vector: Any) -> Any:
    """Add the upper half to the lower until one number is left."""
    length = LANES
    while length > 1:
        length //= 2
        low = _shuffled(builder, vector, vector, list(range(length)))
        high = _shuffled(builder, vector, vector, list(range(length, 2 * length)))
        vector = builder.fadd(low, high)
    return vector


def _lane_sums(builder: Any, vectors: list[Any]) -> Any:
    """Sum of the lanes of each of LANES vectors, or of one, as a vector.

    Pairs of vectors are folded into one until one is left: each holds the partial
    sums of both, lane by lane, in groups.
    """
    if len(vectors) == 1:
        return _halved(builder, vectors[0])
    group = 1
    while len(vectors) > 1:
        folded = []
        for a, b in zip(vectors[::2], vectors[1::2], strict=True):
            # Groups of a and b take turns, once the even and once the odd groups.
            picks: list[list[int]] = [[], []]
            for first in range(0, LANES, 2 * group):
                for odd in (0, 1):
                    one = [first + odd * group + i for i in range(group)]
                    picks[odd] += one + [LANES + i for i in one]
            folded.append(
                builder.fadd(
                    _shuffled(builder, a, b, picks[0]),
                    _shuffled(builder, a, b, picks[1]),
                )
            )
        vectors, group = folded, 2 * group
    return vectors[0]


@intrinsic(prefer_literal=True)
def add_lane_sums(
    _context: Any, tile: Any, array: Any, at: Any, step: Any, length: Any
) -> Any:
    """Add each vector's sum to array[at + i step + j], rows i of `length` columns j."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = _unpack(builder, args[0])
        of_array, n_columns = signature.args[1], signature.args[4].literal_value
        for first in range(0, len(vectors), LANES):
            some = vectors[first : first + LANES]
            padding = 0 if len(some) == 1 else LANES - len(some)
            sums = _lane_sums(builder, some + [_lanes(0.0)] * padding)
            for lane in range(len(some)):
                row, column = divmod(first + lane, n_columns)
                step = builder.mul(args[3], args[3].type(row))
                at = builder.add(args[2], builder.add(step, step.type(column)))
                place = _place(context, builder, of_array, args[1], at)
                before = builder.load(place, typ=context.get_data_type(of_array.dtype))
                total = builder.extract_element(sums, _INDEX(lane))
                builder.store(builder.fadd(before, total), place)
        return context.get_dummy_value()

    return types.none(tile, array, types.intp, types.intp, length), generate


_JIT: Final[dict[str, Any]] = {
    "nogil": True,
    "fastmath": {"contract", "nsz"},
    "forceinline": True,
}
_LOG2_E: Final = 1.4426950408889634
# Adding it rounds to a whole number, which then stands in the lowest bits.
_ROUND: Final = 6755399441055744.0
# ln 2 in two parts, the first short enough that n times it is exact (fdlibm, e_exp.c).
_LN2_HIGH: Final = 6.93147180369123816490e-01
_LN2_LOW: Final = 1.90821492927058770002e-10
_EXP_MIN: Final = -708.0


@njit(**_JIT)
def exp(x: Any) -> Any:
    """exp(x) for x ≤ 0, within 2 ulp; 0 for NaN and from -708 down."""
    clipped = maximum(x, constant(_EXP_MIN))
    shifted = multiply_add(clipped, constant(_LOG2_E), constant(_ROUND))
    whole = subtract(shifted, constant(_ROUND))
    r = multiply_add(whole, constant(-_LN2_HIGH), clipped)
    r = multiply_add(whole, constant(-_LN2_LOW), r)
    # 1 + r + r² q(r); q interpolates in the Chebyshev points of ±1.0005 ln(2)/2, which
    # leaves a relative error of 1.7e-17.
    p = multiply_add(
        r, constant(2.510042720212035e-08), constant(2.7620139383334396e-07)
    )
    p = multiply_add(p, r, constant(2.755726837263038e-06))
    p = multiply_add(p, r, constant(2.4801521189018113e-05))
    p = multiply_add(p, r, constant(0.00019841269863114935))
    p = multiply_add(p, r, constant(0.0013888888917282464))
    p = multiply_add(p, r, constant(0.008333333333330042))
    p = multiply_add(p, r, constant(0.04166666666662399))
    p = multiply_add(p, r, constant(0.16666666666666669))
    p = multiply_add(p, r, constant(0.5000000000000001))
    p = multiply_add(p, r, constant(1.0))
    p = multiply_add(p, r, constant(1.0))
    p = multiply(p, power_of_two(shifted))
    return where_above(x, constant(_EXP_MIN), p, constant(0.0))


@njit(**_JIT)
def log(x: Any) -> Any:
    """log(x) for finite x ≥ 1, within 2 ulp; minus infinity below (fdlibm, e_log.c)."""
    n, f = exponent(x), subtract(fraction(x), constant(1.0))
    s = divide(f, add(f, constant(2.0)))
    z = multiply(s, s)
    r = multiply_add(
        z, constant(1.479819860511658591e-01), constant(1.531383769920937332e-01)
    )
    r = multiply_add(r, z, constant(1.818357216161805012e-01))
    r = multiply_add(r, z, constant(2.222219843214978396e-01))
    r = multiply_add(r, z, constant(2.857142874366239149e-01))
    r = multiply_add(r, z, constant(3.999999999940941908e-01))
    r = multiply_add(r, z, constant(6.666666666666735130e-01))
    r = multiply(r, z)
    half = multiply(multiply(f, f), constant(0.5))
    low = multiply_add(n, constant(_LN2_LOW), multiply(s, add(half, r)))
    small = subtract(f, subtract(half, low))
    logs = multiply_add(n, constant(_LN2_HIGH), small)
    return where_above(constant(1.0), x, constant(-np.inf), logs)

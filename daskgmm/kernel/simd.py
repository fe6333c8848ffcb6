"""Registers of several float64, or of twice as many float32, for compiled kernels.

Inside a function that Numba compiles, a *vector* is as many numbers as a register of
this machine holds (`LANES` float64), and a *register tile* is a tuple of vectors. What
is done to a tile becomes one instruction per vector, whereas a loop over numbers is
vectorised and kept in registers only where the compiler happens to see how. Where tiles
of different lengths meet, the shorter one is repeated. Memory is an array of one
dimension and a place in it; bounds are not checked.

Which numbers a vector has follows from the array that it comes from, or from what it is
made like: what works on arrays of either kind is written once, and compiled for both.

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
from dataclasses import dataclass
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

_INDEX: Final = ir.IntType(32)


@dataclass(frozen=True)
class _Kind:
    """Numbers of one precision: how vectors of them look to LLVM."""

    name: str
    number: Any
    lanes: int
    n_bits: int
    n_fraction_bits: int
    bias: int
    root_half: int
    """The bits of √½."""

    @property
    def vector(self) -> Any:
        return ir.VectorType(self.number, self.lanes)

    @property
    def bits(self) -> Any:
        """A vector's bits, as whole numbers."""
        return ir.VectorType(ir.IntType(self.n_bits), self.lanes)


_DOUBLE: Final = _Kind("f64", ir.DoubleType(), LANES, 64, 52, 1023, 0x3FE6A09E667F3BCD)
_SINGLE: Final = _Kind("f32", ir.FloatType(), 2 * LANES, 32, 23, 127, 0x3F3504F3)


class _VectorType(types.Type):  # type: ignore[misc]
    """As many numbers as a register holds."""

    def __init__(self, kind: _Kind) -> None:
        self.kind = kind
        super().__init__(name=f"{kind.name}x{kind.lanes}")


@register_default(_VectorType)
class _VectorModel(PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, type_: Any) -> None:
        super().__init__(manager, type_, type_.kind.vector)


_vectors: Final = {
    types.float64: _VectorType(_DOUBLE),
    types.float32: _VectorType(_SINGLE),
}


def _vector_like(like: Any) -> Any:
    """Type of the vectors of a register tile, or of those in an array."""
    return like.dtype if isinstance(like, types.UniTuple) else _vectors[like.dtype]


def _tile(like: Any, length: int) -> Any:
    """Type of a register tile of so many vectors."""
    return types.UniTuple(_vector_like(like), length)


def _kind(tile: Any) -> Any:
    """Which numbers a register tile of this type has."""
    return tile.dtype.kind


def _unpack(builder: Any, tile: Any) -> list[Any]:
    return [builder.extract_value(tile, i) for i in range(tile.type.count)]


def _place(context: Any, builder: Any, type_: Any, array: Any, at: Any) -> Any:
    """A pointer to array[at]; what it points to is never asked of it."""
    data = context.make_array(type_)(context, builder, array).data
    return builder.gep(data, [at], source_etype=context.get_data_type(type_.dtype))


def _places(
    context: Any, builder: Any, type_: Any, args: Any, n_columns: int, tile: Any
) -> Any:
    """Where the vectors of a tile stand: rows a step apart, columns side by side."""
    array, at, step = args
    for i in range(len(tile)):
        column = i % n_columns
        aside = builder.add(at, at.type(column * _kind(tile).lanes))
        yield _place(context, builder, type_, array, aside)
        if column == n_columns - 1:
            at = builder.add(at, step)


def _lanes(value: Any, type_: Any) -> Any:
    """A constant vector that repeats one number."""
    return ir.Constant(type_, [value] * type_.count)


def _splat(builder: Any, number: Any, kind: _Kind) -> Any:
    undefined = ir.Constant(kind.vector, ir.Undefined)
    one = builder.insert_element(undefined, number, _INDEX(0))
    mask = ir.Constant(ir.VectorType(_INDEX, kind.lanes), [0] * kind.lanes)
    return builder.shuffle_vector(one, undefined, mask)


def _converted(builder: Any, vector: Any, number: Any) -> Any:
    """A number, or a vector of them, as that kind of number."""
    type_, given = number, vector.type
    if isinstance(given, ir.VectorType):
        type_, given = ir.VectorType(number, given.count), given.element
    if given == number:
        return vector
    convert = builder.fpext if given == _SINGLE.number else builder.fptrunc
    return convert(vector, type_)


def _fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """The sum a b + c, rounded once where the machine has an instruction for it."""
    return _call(builder, "fmuladd", a, b, c)


def _call(builder: Any, name: str, *vectors: Any) -> Any:
    """Call LLVM's own function of that name."""
    vector = vectors[0].type
    type_ = ir.FunctionType(vector, [vector] * len(vectors))
    kind = "f64" if vector.element == _DOUBLE.number else "f32"
    full = f"llvm.{name}.v{vector.count}{kind}"
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

        return _tile(tiles[0], length)(*tiles), generate

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


def _each_in_bits(operation: Callable[..., Any]) -> Any:
    """The same of an operation on bits, which is given their kind, too."""

    def typed(tile: Any) -> Any:
        kind = _kind(tile)

        def generate(builder: Any, x: Any) -> Any:
            return operation(builder, kind, x, builder.bitcast(x, kind.bits))

        return _each(generate)(tile)

    return typed


def _bits_above(builder: Any, args: Any) -> Any:
    """A bit for each lane of a vector: whether it is above the limit's."""
    [vector], [most] = (_unpack(builder, arg) for arg in args)
    lanes_above = builder.fcmp_ordered(">", vector, most)
    return builder.bitcast(lanes_above, ir.IntType(vector.type.count))


@intrinsic
def count_above(_context: Any, x: Any, limit: Any) -> Any:
    """How many numbers of x, a vector, are larger than that of the limit."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        count = builder.ctpop(_bits_above(builder, args))
        return builder.zext(count, context.get_value_type(types.intp))

    return types.intp(x, limit), generate


@intrinsic
def bits_above(_context: Any, x: Any, limit: Any) -> Any:
    """A bit for each number of x, a vector: whether it is larger than the limit's."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = _bits_above(builder, args)
        return builder.zext(bits, context.get_value_type(types.intp))

    return types.intp(x, limit), generate


@intrinsic
def first_bit(_context: Any, bits: Any) -> Any:
    """The place of the lowest bit that is set; there is one."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.intp(types.intp), generate


@intrinsic
def power_of_two(_context: Any, shifted: Any) -> Any:
    """2^n, n the whole number in the lowest bits."""

    def generate(builder: Any, kind: _Kind, _x: Any, bits: Any) -> Any:
        biased = builder.add(bits, _lanes(kind.bias, kind.bits))
        power = builder.shl(biased, _lanes(kind.n_fraction_bits, kind.bits))
        return builder.bitcast(power, kind.vector)

    return _each_in_bits(generate)(shifted)


def _exponent_bits(builder: Any, kind: _Kind, bits: Any) -> Any:
    above = builder.sub(bits, _lanes(kind.root_half, kind.bits))
    return builder.lshr(above, _lanes(kind.n_fraction_bits, kind.bits))


@intrinsic
def exponent(_context: Any, x: Any) -> Any:
    """The n of x = 2^n f with √½ ≤ f < √2, for x ≥ 1."""

    def generate(builder: Any, kind: _Kind, _x: Any, bits: Any) -> Any:
        # As the lowest bits of 2^52, or of 2^23, the whole number is a float.
        n = kind.n_fraction_bits
        large = _lanes((kind.bias + n) << n, kind.bits)
        bits = builder.or_(_exponent_bits(builder, kind, bits), large)
        number = builder.bitcast(bits, kind.vector)
        return builder.fsub(number, _lanes(2.0**n, kind.vector))

    return _each_in_bits(generate)(x)


@intrinsic
def fraction(_context: Any, x: Any) -> Any:
    """The f of x = 2^n f with √½ ≤ f < √2, for x ≥ 1."""

    def generate(builder: Any, kind: _Kind, _x: Any, bits: Any) -> Any:
        n = _lanes(kind.n_fraction_bits, kind.bits)
        power = builder.shl(_exponent_bits(builder, kind, bits), n)
        return builder.bitcast(builder.sub(bits, power), kind.vector)

    return _each_in_bits(generate)(x)


@intrinsic
def is_single(_context: Any, like: Any) -> Any:
    """Whether vectors are of float32: known when it is compiled."""
    known = _vector_like(like).kind is _SINGLE

    def generate(context: Any, _builder: Any, _signature: Any, _args: Any) -> Any:
        return context.get_constant(types.boolean, known)

    return types.boolean(like), generate


@intrinsic
def lanes(_context: Any, like: Any) -> Any:
    """Numbers in a vector like those of an array: known when it is compiled."""
    known = _vector_like(like).kind.lanes

    def generate(context: Any, _builder: Any, _signature: Any, _args: Any) -> Any:
        return context.get_constant(types.intp, known)

    return types.intp(like), generate


@intrinsic
def constant(_context: Any, like: Any, number: Any) -> Any:
    """A register tile of one vector, like others, that repeats a number."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = _kind(signature.return_type)
        number = _converted(builder, args[1], kind.number)
        vector = _splat(builder, number, kind)
        return context.make_tuple(builder, signature.return_type, [vector])

    return _tile(like, 1)(like, types.float64), generate


@intrinsic(prefer_literal=True)
def zeros(_context: Any, like: Any, length: Any) -> Any:
    """A register tile of `length` vectors of zeros."""

    def generate(context: Any, builder: Any, signature: Any, _args: Any) -> Any:
        type_ = signature.return_type
        nothing = _lanes(0.0, _kind(type_).vector)
        return context.make_tuple(builder, type_, [nothing] * len(type_))

    return _tile(like, length.literal_value)(like, length), generate


def _load(context: Any, builder: Any, signature: Any, args: Any, n_columns: int) -> Any:
    """Vectors at args = (array, place, step), converted to those that are wanted."""
    of_array, type_ = signature.args[0], signature.return_type
    kind = _kind(type_)
    wide = ir.VectorType(context.get_data_type(of_array.dtype), kind.lanes)
    vectors = []
    for place in _places(context, builder, of_array, args, n_columns, type_):
        place = builder.bitcast(place, wide.as_pointer())
        vector = builder.load(place, align=4, typ=wide)
        vectors.append(_converted(builder, vector, kind.number))
    return context.make_tuple(builder, type_, vectors)


@intrinsic(prefer_literal=True)
def load(
    _context: Any, array: Any, at: Any, step: Any, n_rows: Any, n_columns: Any
) -> Any:
    """A register tile whose rows stand at array[at + i step]."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        columns = signature.args[4].literal_value
        return _load(context, builder, signature, args[:3], columns)

    type_ = _tile(array, n_rows.literal_value * n_columns.literal_value)
    return type_(array, types.intp, types.intp, n_rows, n_columns), generate


@intrinsic
def load_like(_context: Any, array: Any, at: Any, like: Any) -> Any:
    """A register tile of one vector like those of another array, converted."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = (args[0], args[1], args[1].type(0))
        return _load(context, builder, signature, place, 1)

    return _tile(like, 1)(array, types.intp, like), generate


@intrinsic
def load_square(_context: Any, array: Any, at: Any, step: Any, like: Any) -> Any:
    """As many of them as they have lanes, at array[at + i step]."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _load(context, builder, signature, args[:3], 1)

    type_ = _tile(like, _vector_like(like).kind.lanes)
    return type_(array, types.intp, types.intp, like), generate


@intrinsic
def load_listed(
    _context: Any, array: Any, places: Any, first: Any, step: Any, at: Any
) -> Any:
    """As many vectors as they have lanes, at array[places[first + i] step + at]."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        of_array, of_places = signature.args[:2]
        type_, vectors = signature.return_type, []
        kind = _kind(type_)
        for i in range(len(type_)):
            of_row = builder.add(args[2], args[2].type(i))
            row = _place(context, builder, of_places, args[1], of_row)
            number = builder.load(row, typ=context.get_data_type(of_places.dtype))
            at = builder.add(
                builder.mul(builder.fptosi(number, args[3].type), args[3]), args[4]
            )
            place = _place(context, builder, of_array, args[0], at)
            place = builder.bitcast(place, kind.vector.as_pointer())
            vectors.append(builder.load(place, align=4, typ=kind.vector))
        return context.make_tuple(builder, type_, vectors)

    type_ = _tile(array, _vector_like(array).kind.lanes)
    return type_(array, places, types.intp, types.intp, types.intp), generate


@intrinsic(prefer_literal=True)
def load_apart(_context: Any, array: Any, at: Any, like: Any, n: Any) -> Any:
    """Vectors of which array[at:] has the numbers by turns: of each the first, ..."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        of_array, type_ = signature.args[0], signature.return_type
        kind, count = _kind(type_), len(type_)
        number = context.get_data_type(of_array.dtype)
        wide = ir.VectorType(number, count * kind.lanes)
        place = _place(context, builder, of_array, args[0], args[1])
        place = builder.bitcast(place, wide.as_pointer())
        numbers = builder.load(place, align=4, typ=wide)
        numbers = _converted(builder, numbers, kind.number)
        vectors = [
            _shuffled(builder, numbers, numbers, [*range(i, wide.count, count)])
            for i in range(count)
        ]
        return context.make_tuple(builder, type_, vectors)

    return _tile(like, n.literal_value)(array, types.intp, like, n), generate


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
        at, kind, vectors = args[1], _kind(type_), []
        for _ in range(len(type_)):
            place = _place(context, builder, of_array, args[0], at)
            number = builder.load(place, typ=kind.number)
            vectors.append(_splat(builder, number, kind))
            at = builder.add(at, args[2])
        return context.make_tuple(builder, type_, vectors)

    type_ = _tile(array, length.literal_value)
    return type_(array, types.intp, types.intp, length), generate


def _to_places(
    write: Callable[[Any, Any, Any], None], tile: Any, array: Any, n_columns: Any
) -> Any:
    """Typing and code of what is done with each vector of a tile, and its place."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        of_array, columns = signature.args[1], signature.args[4].literal_value
        type_, vectors = signature.args[0], _unpack(builder, args[0])
        places = _places(context, builder, of_array, args[1:4], columns, type_)
        for vector, place in zip(vectors, places, strict=True):
            write(builder, vector, place)
        return context.get_dummy_value()

    return types.none(tile, array, types.intp, types.intp, n_columns), generate


@intrinsic(prefer_literal=True)
def store(
    _context: Any, tile: Any, array: Any, at: Any, step: Any, n_columns: Any
) -> Any:
    """Write the rows of a register tile to array[at + i step]."""

    def write(builder: Any, vector: Any, place: Any) -> None:
        place = builder.bitcast(place, vector.type.as_pointer())
        builder.store(vector, place, align=4)

    return _to_places(write, tile, array, n_columns)


@intrinsic(prefer_literal=True)
def part(_context: Any, tile: Any, first: Any, length: Any) -> Any:
    """So many vectors of a register tile, from a first one on."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        type_, start = signature.return_type, signature.args[1].literal_value
        vectors = _unpack(builder, args[0])[start : start + len(type_)]
        return context.make_tuple(builder, type_, vectors)

    return _tile(tile, length.literal_value)(tile, first, length), generate


@intrinsic(prefer_literal=True)
def add_to(
    _context: Any, tile: Any, array: Any, at: Any, step: Any, n_columns: Any
) -> Any:
    """Add the rows of a register tile to array[at + i step], which is float64."""

    def add_there(builder: Any, vector: Any, place: Any) -> None:
        numbers = _converted(builder, vector, _DOUBLE.number)
        place = builder.bitcast(place, numbers.type.as_pointer())
        before = builder.load(place, align=8, typ=numbers.type)
        builder.store(builder.fadd(before, numbers), place, align=8)

    return _to_places(add_there, tile, array, n_columns)


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


@intrinsic
def add_quadratic(_context: Any, a: Any, b: Any, x: Any, tile: Any) -> Any:
    """(a[i] x[j] + b[i]) x[j] + tile[i, j]."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        first, second, numbers, before = (_unpack(builder, arg) for arg in args)
        vectors = []
        for i, (u, v) in enumerate(zip(first, second, strict=True)):
            for j, number in enumerate(numbers):
                slope = _fused(builder, u, number, v)
                c = before[i * len(numbers) + j]
                vectors.append(_fused(builder, slope, number, c))
        return context.make_tuple(builder, signature.return_type, vectors)

    return tile(a, b, x, tile), generate


@intrinsic(prefer_literal=True)
def row_sums(_context: Any, tile: Any, n_rows: Any) -> Any:
    """The sum of each row's vectors."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors, n = _unpack(builder, args[0]), len(signature.return_type)
        columns = len(vectors) // n
        rows = [vectors[i * columns : (i + 1) * columns] for i in range(n)]
        sums = [functools.reduce(builder.fadd, row) for row in rows]
        return context.make_tuple(builder, signature.return_type, sums)

    return _tile(tile, n_rows.literal_value)(tile, n_rows), generate


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
def add_triangular_squares(_context: Any, matrix: Any, tile: Any, sums: Any) -> Any:
    """Squares of a lower triangular matrix times a tile, summed, + sums."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers, vectors, sums = (_unpack(builder, arg) for arg in args)
        columns, rest = len(sums), iter(numbers)
        for i in range(len(vectors) // columns):
            row = [next(rest) for _ in range(i + 1)]
            for column in range(columns):
                product = builder.fmul(row[0], vectors[column])
                for j in range(1, i + 1):
                    vector = vectors[j * columns + column]
                    product = _fused(builder, row[j], vector, product)
                sums[column] = _fused(builder, product, product, sums[column])
        return context.make_tuple(builder, signature.return_type, sums)

    return sums(matrix, tile, sums), generate


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
def add_exact_squares(
    _context: Any, right: Any, left: Any, low: Any, scales: Any, tile: Any
) -> Any:
    """((right[j] - left[i] - low[i]) scales[i])² + tile[i, j]."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, m, lows, f, c = (_unpack(builder, arg) for arg in args)
        vectors = []
        for i, (mean, rest, scale) in enumerate(zip(m, lows, f, strict=True)):
            for j, number in enumerate(x):
                e = builder.fsub(builder.fsub(number, mean), rest)
                z = builder.fmul(e, scale)
                vectors.append(_fused(builder, z, z, c[i * len(x) + j]))
        return context.make_tuple(builder, signature.return_type, vectors)

    return tile(right, left, low, scales, tile), generate


@intrinsic
def transpose(_context: Any, tile: Any) -> Any:
    """A square of as many vectors as they have lanes, transposed."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = _unpack(builder, args[0])
        n = len(vectors)
        group = n // 2
        while group:
            # Swap the off-diagonal quarters of each square of 2 group × 2 group.
            low, high = [], []
            for first in range(0, n, 2 * group):
                low += [first + i for i in range(group)]
                low += [n + first + i for i in range(group)]
                high += [first + group + i for i in range(group)]
                high += [n + first + group + i for i in range(group)]
            for i in range(n):
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
    length = vector.type.count
    while length > 1:
        length //= 2
        low = _shuffled(builder, vector, vector, list(range(length)))
        high = _shuffled(builder, vector, vector, list(range(length, 2 * length)))
        vector = builder.fadd(low, high)
    return vector


def _lane_sums(builder: Any, vectors: list[Any]) -> Any:
    """Sum of the lanes of each of a square's vectors, or of one, as a vector.

    Pairs of vectors are folded into one until one is left: each holds the partial
    sums of both, lane by lane, in groups.
    """
    if len(vectors) == 1:
        return _halved(builder, vectors[0])
    group, n = 1, len(vectors)
    while len(vectors) > 1:
        folded = []
        for a, b in zip(vectors[::2], vectors[1::2], strict=True):
            # Groups of a and b take turns, once the even and once the odd groups.
            picks: list[list[int]] = [[], []]
            for first in range(0, n, 2 * group):
                for odd in (0, 1):
                    one = [first + odd * group + i for i in range(group)]
                    picks[odd] += one + [n + i for i in one]
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
    """Add each vector's sum to array[at + i step + j], rows i of `length` columns j.

    What the array has is float64, whatever is added.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors, kind = _unpack(builder, args[0]), _kind(signature.args[0])
        of_array, n_columns = signature.args[1], signature.args[4].literal_value
        for first in range(0, len(vectors), kind.lanes):
            some = vectors[first : first + kind.lanes]
            padding = 0 if len(some) == 1 else kind.lanes - len(some)
            nothing = _lanes(0.0, kind.vector)
            sums = _lane_sums(builder, some + [nothing] * padding)
            sums = _converted(builder, sums, _DOUBLE.number)
            for lane in range(len(some)):
                row, column = divmod(first + lane, n_columns)
                step = builder.mul(args[3], args[3].type(row))
                at = builder.add(args[2], builder.add(step, step.type(column)))
                place = _place(context, builder, of_array, args[1], at)
                before = builder.load(place, typ=_DOUBLE.number)
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
_ROUND_SINGLE: Final = 12582912.0
# ln 2 in two parts, the first short enough that n times it is exact (fdlibm, e_exp.c;
# for float32 Cephes, expf.c).
_LN2_HIGH: Final = 6.93147180369123816490e-01
_LN2_LOW: Final = 1.90821492927058770002e-10
_LN2_HIGH_SINGLE: Final = 0.693359375
_LN2_LOW_SINGLE: Final = -2.12194440e-4
_EXP_MIN: Final = -708.0
_EXP_MIN_SINGLE: Final = -43.0
"""Of its exponential the square is no subnormal number either."""


@intrinsic(prefer_literal=True)
def polynomial(_context: Any, x: Any, coefficients: Any) -> Any:
    """A polynomial by Horner's rule, the coefficient of the highest power first."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers = [
            _converted(builder, number, _kind(x).number)
            for number in cgutils.unpack_tuple(builder, args[1])
        ]
        first, *rest = (_splat(builder, number, _kind(x)) for number in numbers)
        results = []
        for vector in _unpack(builder, args[0]):
            result = first
            for number in rest:
                result = _fused(builder, result, vector, number)
            results.append(result)
        return context.make_tuple(builder, signature.return_type, results)

    return x(x, coefficients), generate


# 1 + r + r² q(r); q interpolates in the Chebyshev points of ±1.0005 ln(2)/2, which
# leaves a relative error of 1.7e-17.
_EXP: Final = (
    2.510042720212035e-08,
    2.7620139383334396e-07,
    2.755726837263038e-06,
    2.4801521189018113e-05,
    0.00019841269863114935,
    0.0013888888917282464,
    0.008333333333330042,
    0.04166666666662399,
    0.16666666666666669,
    0.5000000000000001,
    1.0,
    1.0,
)
_EXP_SINGLE: Final = (  # Cephes, expf.c
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
    1.0,
    1.0,
)
_LOG: Final = (  # fdlibm, e_log.c
    1.479819860511658591e-01,
    1.531383769920937332e-01,
    1.818357216161805012e-01,
    2.222219843214978396e-01,
    2.857142874366239149e-01,
    3.999999999940941908e-01,
    6.666666666666735130e-01,
)
_LOG_SINGLE: Final = (  # Cephes, logf.c
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)


@njit(**_JIT)
def exp(x: Any) -> Any:
    """exp(x) for x ≤ 0, within 2 ulp; 0 for NaN and from -708, or -43, down."""
    single = is_single(x)
    lowest = constant(x, _EXP_MIN_SINGLE if single else _EXP_MIN)
    large = constant(x, _ROUND_SINGLE if single else _ROUND)
    high = constant(x, -_LN2_HIGH_SINGLE if single else -_LN2_HIGH)
    low = constant(x, -_LN2_LOW_SINGLE if single else -_LN2_LOW)
    clipped = maximum(x, lowest)
    shifted = multiply_add(clipped, constant(x, _LOG2_E), large)
    whole = subtract(shifted, large)
    r = multiply_add(whole, low, multiply_add(whole, high, clipped))
    p = polynomial(r, _EXP_SINGLE) if single else polynomial(r, _EXP)
    p = multiply(p, power_of_two(shifted))
    return where_above(x, lowest, p, constant(x, 0.0))


@njit(**_JIT)
def _log_double(n: Any, f: Any) -> Any:
    """The logarithm of 2^n (1 + f)."""
    s = divide(f, add(f, constant(f, 2.0)))
    z = multiply(s, s)
    r = multiply(polynomial(z, _LOG), z)
    half = multiply(multiply(f, f), constant(f, 0.5))
    low = multiply_add(n, constant(f, _LN2_LOW), multiply(s, add(half, r)))
    small = subtract(f, subtract(half, low))
    return multiply_add(n, constant(f, _LN2_HIGH), small)


@njit(**_JIT)
def _log_single(n: Any, f: Any) -> Any:
    """The same of float32."""
    z = multiply(f, f)
    low = multiply(polynomial(f, _LOG_SINGLE), multiply(f, z))
    low = multiply_add(n, constant(f, _LN2_LOW_SINGLE), low)
    low = multiply_add(z, constant(f, -0.5), low)
    return multiply_add(n, constant(f, _LN2_HIGH_SINGLE), add(f, low))


@njit(**_JIT)
def log(x: Any) -> Any:
    """log(x) for finite x ≥ 1, within 2 ulp; minus infinity below."""
    n, f = exponent(x), subtract(fraction(x), constant(x, 1.0))
    logs = _log_single(n, f) if is_single(x) else _log_double(n, f)
    return where_above(constant(x, 1.0), x, constant(x, -np.inf), logs)

"""Winograd's transforms as micro-kernels: one lane for each channel or filter, a whole tile in registers.

Every transform is a sandwich `L tile LT` of one small matrix, written out as additions and fused multiply-adds that
share what rows or columns for points +p and -p have in common. Its loops run along tiles that lie a step apart.

Instructions that compute, for a tile and vector, size 2 and 4: 32 and 168 for an input tile, 32 and 152 for an output
tile with its bias and flag. For each of both 16 or 36 vectors are loaded or stored in steps of a whole matrix.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from kernelproof.kernels.winograd_matrices import TAPS, Matrix, matrices, transposed

from ..vectors import Words, micro_kernel


@micro_kernel
def input_to_points(
    words: Words, x: Any, row_step: Any, tiles: Any, tile_step: Any, v: Any, point_step: Any, v_step: Any, *, size: int
) -> None:
    """`v[tile][point] = BT x[tile] B` of tiles of (size + 2) x (size + 2) pixels; pixels of a row are side by side."""
    bt = matrices(size)[2]
    _to_points(words, bt, (x, row_step, words.number(words.size)), (tiles, tile_step), (v, point_step, v_step))


@micro_kernel
def weight_to_points(
    words: Words, weight: Any, channels: Any, u: Any, point_step: Any, u_step: Any, *, size: int
) -> None:  # fmt: skip
    """`u[channel][point] = G weight[channel] GT` of 3 x 3 taps that are turned to a lane for each filter."""
    row, tap = words.number(TAPS * words.size), words.number(words.size)
    step = words.number(TAPS**2 * words.size)
    _to_points(words, matrices(size)[1], (weight, row, tap), (channels, step), (u, point_step, u_step))


@micro_kernel
def turned_weight_to_points(
    words: Words,
    weight: Any,
    step: Any,
    filters: Any,
    channels: Any,
    u: Any,
    point_step: Any,
    u_step: Any,
    *,
    size: int,
) -> None:
    """`u[channel][point] = G weight[channel] GT`, taps turned around, from `weight[channel][filter][3][3]` itself.

    Up to `LANES` filters, the other lanes are zero; they are turned to lanes in registers.
    """
    builder, taps = words.builder, TAPS * TAPS
    kept, last = words.first(filters), words.at(filters, -1)
    with words.loop(channels, weight, u) as channel:
        weight, u = channel.carried
        channel.carry(words.at(weight, step), words.at(u, u_step))
        lanes = []
        for lane in range(words.lanes):
            # Filters that are not there are read from the last one, then dropped: nothing beyond weights is touched.
            here = builder.select(builder.icmp_signed("<", words.number(lane), filters), words.number(lane), last)
            lanes.append(words.at(weight, words.times(here, 4 * taps)))
        vectors: list[Any] = []
        for first in range(0, taps, words.lanes):
            valid = words.first(words.number(taps - first))
            square = words.transpose([words.load_where(valid, words.at(lane, 4 * first)) for lane in lanes])
            vectors += [builder.select(kept, each, words.constant(0)) for each in square[: taps - first]]
        turned = vectors[::-1]
        columns = [_apply(words, matrices(size)[1], turned[column::TAPS]) for column in range(TAPS)]
        _store_points(words, matrices(size)[1], columns, u, point_step)


@micro_kernel
def gradient_to_points(
    words: Words, dy: Any, row_step: Any, tiles: Any, tile_step: Any, d: Any, point_step: Any, d_step: Any, *, size: int
) -> None:
    """`d[tile][point] = A dy[tile] AT` of tiles of size x size pixels."""
    a = transposed(matrices(size)[0])
    _to_points(words, a, (dy, row_step, words.number(words.size)), (tiles, tile_step), (d, point_step, d_step))


@micro_kernel
def points_to_output(
    words: Words, m: Any, point_step: Any, tiles: Any, m_step: Any, bias: Any, y: Any, row_step: Any, tile_step: Any,
    seen: Any, *, size: int,
) -> None:  # fmt: skip
    """`y[tile] = AT m[tile] A + bias`, size x size pixels; `seen` turns NaN, and stays it, where one is not finite."""
    at = matrices(size)[0]
    _from_points(words, at, (m, point_step), (tiles, m_step), words.load(bias), (y, row_step, tile_step), seen)


@micro_kernel
def points_to_weight(
    words: Words, s: Any, point_step: Any, channels: Any, s_step: Any, dweight: Any, step: Any, seen: Any, *, size: int
) -> None:
    """`dweight[channel] = GT s[channel] G`, 3 x 3 taps; `seen` turns NaN, and stays it, where one is not finite."""
    gt, row_step = transposed(matrices(size)[1]), words.number(TAPS * words.size)
    _from_points(words, gt, (s, point_step), (channels, s_step), None, (dweight, row_step, step), seen)


def _to_points(words: Words, matrix: Matrix, source: Any, tiles: Any, target: Any) -> None:
    (x, row_step, column_step), (count, tile_step), (v, point_step, v_step) = source, tiles, target
    size = range(len(matrix[0]))
    with words.loop(count, x, v) as tile:
        x, v = tile.carried
        tile.carry(words.at(x, tile_step), words.at(v, v_step))
        rows = [x]
        for _ in size[1:]:
            rows.append(words.at(rows[-1], row_step))
        columns = []
        for _ in size:
            columns.append(_apply(words, matrix, [words.load(row) for row in rows]))
            rows = [words.at(row, column_step) for row in rows]
        _store_points(words, matrix, columns, v, point_step)


def _store_points(words: Words, matrix: Matrix, columns: Sequence[Any], v: Any, point_step: Any) -> None:
    for row in zip(*columns, strict=True):
        for each in _apply(words, matrix, row):
            words.store(each, v)
            v = words.at(v, point_step)


def _from_points(words: Words, matrix: Matrix, source: Any, tiles: Any, bias: Any, target: Any, seen: Any) -> None:
    (m, point_step), (count, m_step), (y, row_step, tile_step) = source, tiles, target
    builder, points = words.builder, range(len(matrix[0]))
    with words.loop(count, m, y, words.load(seen)) as tile:
        m, y, flag = tile.carried
        following = words.at(m, m_step), words.at(y, tile_step)
        rows = []
        for _ in points:
            row = []
            for _ in points:
                row.append(words.load(m))
                m = words.at(m, point_step)
            rows.append(_apply(words, matrix, row))
        # From the last column to the first: where rows of y overlap, the next row's first columns win.
        for column, vectors in reversed(list(enumerate(zip(*rows, strict=True)))):
            target = words.at(y, words.size * column)
            for each in _apply(words, matrix, vectors):
                each = each if bias is None else builder.fadd(each, bias)
                flag = words.fma(each, words.constant(0), flag)
                words.store(each, target)
                target = words.at(target, row_step)
        tile.carry(*following, flag)
    words.store(tile.results[-1], seen)


def _apply(words: Words, matrix: Matrix, vectors: Sequence[Any]) -> list[Any]:
    """`matrix` times a column of vectors; each element passes at most as many roundings as its row has nonzeros.

    Columns that differ in signs alone need only the sum and the difference of their vectors, and rows that do share
    the sums of what they agree and disagree in.
    """
    builder, vectors = words.builder, list(vectors)
    columns = [list(column) for column in transposed(matrix)]
    for i, j in _pairs(columns):
        a, b = vectors[i], vectors[j]
        vectors[i], vectors[j] = builder.fadd(a, b), builder.fsub(a, b)
        columns[i], columns[j] = (
            [p if p == q else Fraction(0) for p, q in zip(columns[i], columns[j], strict=True)],
            [p if p != q else Fraction(0) for p, q in zip(columns[i], columns[j], strict=True)],
        )
    rows = [list(row) for row in zip(*columns, strict=True)]
    products: list[Any] = [None] * len(rows)
    for i, j in _pairs(rows):
        agreeing = _dot(words, [p if p == q else Fraction(0) for p, q in zip(rows[i], rows[j], strict=True)], vectors)
        other = _dot(words, [p if p != q else Fraction(0) for p, q in zip(rows[i], rows[j], strict=True)], vectors)
        products[i], products[j] = builder.fadd(agreeing, other), builder.fsub(agreeing, other)
    return [product or _dot(words, row, vectors) for product, row in zip(products, rows, strict=True)]


def _pairs(lines: Sequence[Sequence[Fraction]]) -> list[tuple[int, int]]:
    """Disjoint pairs of lines that have the same magnitudes, and some nonzeros with equal and some with other signs."""
    pairs: list[tuple[int, int]] = []
    for i, a in enumerate(lines):
        for j, b in enumerate(lines[:i]):
            signs = {p == q for p, q in zip(a, b, strict=True) if p}
            alike = [abs(p) for p in a] == [abs(q) for q in b]
            if alike and len(signs) == 2 and not any({i, j} & set(pair) for pair in pairs):
                pairs.append((j, i))
    return pairs


def _dot(words: Words, row: Sequence[Fraction], vectors: Sequence[Any]) -> Any:
    """The sum of the row's products, those that need no multiplication first."""
    builder, total = words.builder, None
    for factor, vector in sorted(zip(row, vectors, strict=True), key=lambda term: (abs(term[0]) != 1, -term[0])):
        if factor == 0:
            continue
        if total is None:
            total = vector if factor == 1 else builder.fmul(vector, words.constant(float(factor)))
        elif factor == 1:
            total = builder.fadd(total, vector)
        elif factor == -1:
            total = builder.fsub(total, vector)
        else:
            total = words.fma(vector, words.constant(float(factor)), total)
    return total

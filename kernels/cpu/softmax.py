"""The micro-kernels of cross-entropy: a row's greatest, the exponentials below it, and their sum."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from .vectors import INT32, Words, micro_kernel


@micro_kernel
def exponentials(words: Words, logits: Any, count: Any, y: Any, results: Any, *, stored: int) -> None:
    """`results = (m, sum_k exp(logits[k] - m))` with `m = max_k logits[k]`; with `stored` y[k] are the exponentials.

    m passes over NaN: its own exponential brings it into the sum. In each lane one chain of additions; the lanes are
    added halves to halves.
    """
    builder, lanes = words.builder, words.lanes
    whole, left = (each(count, words.number(lanes)) for each in (builder.sdiv, builder.srem))
    lowest, valid = words.constant(float("-inf")), words.first(left)
    end = words.at(logits, words.times(whole, words.size))

    def greater(a: Any, b: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", a, b), a, b)

    with words.loop(whole, lowest) as loop:
        value = words.load(words.at(logits, words.times(loop.index, words.size)))
        loop.carry(greater(value, loop.carried[0]))
    # No branch for what is left: where that is nothing the mask is empty.
    last = words.load_where(valid, end, float("-inf"))
    greatest = _across(words, greater(last, loop.results[0]), greater)
    with words.loop(whole, words.constant(0)) as loop:
        offset = words.times(loop.index, words.size)
        value = _exponential(words, builder.fsub(words.load(words.at(logits, offset)), greatest))
        if stored:
            words.store(value, words.at(y, offset))
        loop.carry(builder.fadd(loop.carried[0], value))
    value = _exponential(words, builder.fsub(last, greatest))
    if stored:
        words.store_where(valid, value, words.at(y, words.times(whole, words.size)))
    total = builder.fadd(loop.results[0], builder.select(valid, value, words.constant(0)))
    first = words.first(words.number(1))
    words.store_where(first, greatest, results)
    words.store_where(first, _across(words, total, builder.fadd), words.at(results, 4))


@micro_kernel
def divide(words: Words, y: Any, count: Any, divisors: Any) -> None:
    """`y[k] = y[k] / divisors[0] / divisors[1]`."""
    builder, lanes = words.builder, words.lanes
    whole, left = (each(count, words.number(lanes)) for each in (builder.sdiv, builder.srem))
    by = [words.splat(words.at(divisors, 4 * number)) for number in (0, 1)]

    def quotient(vector: Any) -> Any:
        return builder.fdiv(builder.fdiv(vector, by[0]), by[1])

    with words.loop(whole, y) as loop:
        words.store(quotient(words.load(loop.carried[0])), loop.carried[0])
        loop.carry(words.at(loop.carried[0], words.size))
    valid, end = words.first(left), loop.results[0]
    words.store_where(valid, quotient(words.load_where(valid, end)), end)


def _across(words: Words, vector: Any, join: Callable[[Any, Any], Any]) -> Any:
    """All lanes joined, halves to halves, in every lane."""
    half = words.lanes // 2
    while half:
        turned = words.shuffle(vector, vector, [(lane + half) % words.lanes for lane in range(words.lanes)])
        vector, half = join(vector, turned), half // 2
    return vector


_LOG2_E, _LN2_HIGH, _LN2_LOW = 1.4426950408889634, 0.693359375, -2.12194440e-4
_ROUNDING = 1.5 * 2**23
"""Added and taken away again, it leaves whole numbers; as bits, it leaves them as integers."""
_COEFFICIENTS = 1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1
"""Of `(exp(r) - 1 - r) / r**2` on `|r| <= ln(2)/2`, highest power first. Source: Cephes, expf."""
_VANISHES = -104.0
"""exp of this and of less is below half the smallest float."""


def _exponential(words: Words, z: Any) -> Any:
    """exp(z) for z <= 0, within 2 units in the last place: `2**n * exp(r)` with `z = n*ln(2) + r`; NaN stays NaN."""
    builder, constant = words.builder, words.constant
    integers = ir.VectorType(INT32, words.lanes)

    def whole(value: int) -> Any:
        return ir.Constant(integers, [value] * words.lanes)

    z = builder.select(builder.fcmp_ordered("<", z, constant(_VANISHES)), constant(_VANISHES), z)
    shifted = words.fma(z, constant(_LOG2_E), constant(_ROUNDING))
    n = builder.fsub(shifted, constant(_ROUNDING))
    # ln(2) in two parts: n times the high one is exact.
    r = words.fma(n, constant(-_LN2_LOW), words.fma(n, constant(-_LN2_HIGH), z))
    polynomial = constant(_COEFFICIENTS[0])
    for coefficient in _COEFFICIENTS[1:]:
        polynomial = words.fma(polynomial, r, constant(coefficient))
    value = builder.fadd(words.fma(builder.fmul(polynomial, r), r, r), constant(1))
    exponent = builder.sub(builder.bitcast(shifted, integers), builder.bitcast(constant(_ROUNDING), integers))
    # In two steps: 2**n itself may be no float where the result is one, below the normal ones.
    half = builder.ashr(exponent, whole(1))
    for each in (half, builder.sub(exponent, half)):
        power = builder.shl(builder.add(each, whole(127)), whole(23))
        value = builder.fmul(value, builder.bitcast(power, words.vector))
    return value

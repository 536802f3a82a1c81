"""What a thread of direct.py, input_gradient.py and first_block.py has in registers: inputs of windows, and sums."""

from typing import Any

from llvmlite import ir
from numba.cuda import types

from .. import ptx
from ..ptx import F32, constant, device_function, emit, unpacked
from ..tensor_cores.arithmetic import CHANNELS, SIXTEEN


def tuple_of(count: int) -> Any:
    """So many float32."""
    return types.UniTuple(types.float32, count)


def window_of(channels: int, rows: int, row: int) -> Any:
    """`inputs(x, h, w, height, width, ...)`: the inputs of the window from (h, w) on, `[c][r][s]`, zeros outside.

    What follows: bytes from a channel, a tap's row, a tap to the next, and how far apart taps' rows and taps lie.
    """
    text = ["{ .reg .pred p, q; .reg .s32 h, w; .reg .b64 at, line, plane; mov.b64 plane, $IN0;"]
    count, i = channels * rows * row, 0
    names = {f"$IN{j}": f"${count + j}" for j in range(10)}
    for _ in range(channels):
        text.append("mov.b64 line, plane; mov.b32 h, $IN1;")
        for _ in range(rows):
            # Unsigned, a negative row is a great one.
            text.append("setp.lt.u32 p, h, $IN3; mov.b64 at, line; mov.b32 w, $IN2;")
            for _ in range(row):
                text.append(f"setp.lt.and.u32 q, w, $IN4, p; mov.b32 ${i}, 0; @q ld.global.nc.f32 ${i}, [at];")
                text.append("add.s64 at, at, $IN7; add.s32 w, w, $IN9;")
                i += 1
            text.append("add.s64 line, line, $IN6; add.s32 h, h, $IN8;")
        text.append("add.s64 plane, plane, $IN5;")
    joined = "\n".join([*text, "}"])
    for name, place in names.items():
        joined = joined.replace(name, place)

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        kinds = [a.type for a in arguments]
        letters = ["l" if kind == ptx.I64 else "r" for kind in kinds]
        function = ir.FunctionType(ir.LiteralStructType([F32] * count) if count > 1 else F32, kinds)
        constraints = ",".join(["=&f"] * count + letters)
        result = builder.call(ir.InlineAsm(function, joined, constraints, side_effect=True), arguments)
        return unpacked(builder, result, count) if count > 1 else [result]

    integers = [types.int32] * 4
    return device_function(
        tuple_of(count)(types.int64, *integers, *[types.int64] * 3, types.int32, types.int32), generate
    )


def dots_of(channels: int, rows: int, row: int, tall: int, step: int) -> Any:
    """`dots(starts, inputs, address)`: for `tall` windows, each `step` rows of inputs below the one before, start + sum
    of inputs times the filter at a shared address, which is read four numbers at a time, once for all."""
    count, height = channels * rows * row, rows + (tall - 1) * step

    def generate(builder: Any, arguments: list[Any]) -> Any:
        totals, inputs = unpacked(builder, arguments[0], tall), unpacked(builder, arguments[1], channels * height * row)
        for i in range(0, count, 4):
            text = f"ld.shared.v4.f32 {{$0, $1, $2, $3}}, [$4+{4 * i}];"
            weights = emit(builder, text, "ffff", "r", [arguments[2]])
            for tap in range(i, min(i + 4, count)):
                (c, r), s = divmod(tap // row, rows), tap % row
                for j in range(tall):
                    value = inputs[(c * height + r + j * step) * row + s]
                    totals[j] = builder.fma(value, weights[tap - i], totals[j])
        return totals

    inputs = tuple_of(channels * height * row)
    return device_function(tuple_of(tall)(tuple_of(tall), inputs, types.int32), generate)


def dots_for(filters: int, taps: int) -> Any:
    """`dots(sums, inputs, address)`: for each of so many filters, sum + the inputs times the filter at a shared
    address, read four numbers at a time, one filter after the other."""
    padded = -(-taps // 4) * 4

    def generate(builder: Any, arguments: list[Any]) -> Any:
        totals, inputs = unpacked(builder, arguments[0], filters), unpacked(builder, arguments[1], taps)
        for f in range(filters):
            for i in range(0, taps, 4):
                text = f"ld.shared.v4.f32 {{$0, $1, $2, $3}}, [$4+{4 * (f * padded + i)}];"
                weights = emit(builder, text, "ffff", "r", [arguments[2]])
                for tap in range(i, min(i + 4, taps)):
                    totals[f] = builder.fma(inputs[tap], weights[tap - i], totals[f])
        return totals

    return device_function(tuple_of(filters)(tuple_of(filters), tuple_of(taps), types.int32), generate)


def finished_of(tall: int) -> Any:
    """`finished(sums, bias, rectify)`: sums + bias, and no less than 0 if rectify is not 0."""

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        zero, results = ir.Constant(F32, 0.0), []
        rectify = builder.icmp_signed("!=", arguments[2], constant(0))
        for total in unpacked(builder, arguments[0], tall):
            value = builder.fadd(total, arguments[1])
            negative = builder.fcmp_ordered("<", value, zero)  # So NaN stays NaN, as in relu.
            results.append(builder.select(builder.and_(rectify, negative), zero, value))
        return results

    return device_function(tuple_of(tall)(tuple_of(tall), types.float32, types.int32), generate)


def outer_add_of(filters: int, taps: int) -> Any:
    """`add(sums, inputs, factors)`: `sums[f][t] + inputs[t] * factors[f]`."""
    count = filters * taps

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        sums, inputs, factors = (
            unpacked(builder, each, size) for each, size in zip(arguments, (count, taps, filters), strict=True)
        )
        return [builder.fma(inputs[i % taps], factors[i // taps], total) for i, total in enumerate(sums)]

    return device_function(tuple_of(count)(tuple_of(count), tuple_of(taps), tuple_of(filters)), generate)


def warp_sums_of(count: int) -> Any:
    """`warp_sums(sums)`: the warp's sums, told to all its lanes, in a fixed tree."""

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        sums = unpacked(builder, arguments[0], count)
        for lanes in (16, 8, 4, 2, 1):
            text = f"shfl.sync.bfly.b32 $0, $1, {lanes}, 31, -1;"
            sums = [builder.fadd(each, emit(builder, text, "f", "f", [each])[0]) for each in sums]
        return sums

    return device_function(tuple_of(count)(tuple_of(count)), generate)


def stored_of(filters: int, taps: int) -> Any:
    """`store(sums, address, step, count)`: the first `count` filters' sums to device memory, `step` bytes apart."""
    total = filters * taps
    text = [f"{{ .reg .pred p; .reg .b64 at; mov.b64 at, ${total};"]
    for f in range(filters):
        text.append(f"setp.gt.s32 p, ${total + 2}, {f};")
        text += [f"@p st.global.f32 [at+{4 * t}], ${f * taps + t};" for t in range(taps)]
        text.append(f"add.s64 at, at, ${total + 1};")

    def generate(builder: Any, arguments: list[Any]) -> None:
        values = unpacked(builder, arguments[0], total)
        emit(builder, "\n".join([*text, "}"]), "", "f" * total + "llr", [*values, *arguments[1:]])

    return device_function(types.void(tuple_of(total), types.int64, types.int64, types.int32), generate)


def zeros_of(count: int) -> Any:
    """`zero()`: so many zeros."""
    return device_function(tuple_of(count)(), lambda builder, _: [ir.Constant(F32, 0.0)] * count)


def _sum_on(builder: Any, arguments: list[Any]) -> Any:
    total = arguments[0]
    for value in unpacked(builder, arguments[1], CHANNELS):
        total = builder.fadd(total, value)
    return total


add_on = device_function(types.float32(types.float32, SIXTEEN), _sum_on)
"""`add_on(total, values)`: total and the values, one after the other."""

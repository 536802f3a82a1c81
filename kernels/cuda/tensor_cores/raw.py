"""What comes from device memory as it is, on its way through shared memory, by copies that run by themselves.

x: each thread copies ahead what it will split itself, and none of its registers waits for it. Nobody else looks at it,
so no barrier is needed: only that the thread waits for its copies. An item is sixteen channels of a slot and a word
more, so that the items of a warp begin in different banks. Weights: all threads copy a run of bytes together.
"""

from typing import Any

from llvmlite import ir
from numba.cuda import types

from ..ptx import F32, I32, device_function, emit, unpacked
from .arithmetic import CHANNELS, SIXTEEN

ITEM = 4 * (CHANNELS + 1)
"""Bytes; the last word is the greatest value of the image, where operands are scaled."""


def _copy_item(builder: Any, arguments: list[Any]) -> None:
    copies = [
        f"cp.async.ca.shared.global [$0 + {4 * i}], [at], 4, count; add.s64 at, at, step;" for i in range(CHANNELS)
    ]
    some = [f"setp.gt.s32 p, $3, {i}; selp.b32 count, 4, 0, p; {copy}" for i, copy in enumerate(copies)]
    text = [
        "{ .reg .pred p, some; .reg .b32 count; .reg .b64 at, step; mov.b64 at, $1; cvt.s64.s32 step, $2;",
        f"setp.gt.s32 p, $3, 0; setp.lt.and.s32 some, $3, {CHANNELS}, p; @some bra some_${{:uid}};",
        "selp.b32 count, 4, 0, p;",  # Of no bytes nothing is read, wherever the address points, and the word is zero.
        *copies, "bra done_${:uid}; some_${:uid}:", *some, "done_${:uid}: }",
    ]  # fmt: skip
    emit(builder, "\n".join(text), "", "rlrr", arguments)


copy_item = device_function(types.void(types.int32, types.int64, types.int32, types.int32), _copy_item)
"""`copy_item(to, address, step, some)`: sixteen words, `step` bytes apart; zeros from `some` on."""


def _read_item(builder: Any, arguments: list[Any]) -> list[Any]:
    text = "\n".join(f"ld.shared.f32 ${i}, [$16 + {4 * i}];" for i in range(CHANNELS))
    returned = ir.LiteralStructType([F32] * CHANNELS)
    assembly = ir.InlineAsm(ir.FunctionType(returned, [I32]), text, "=&f," * CHANNELS + "r,~{memory}", True)
    return unpacked(builder, builder.call(assembly, arguments), CHANNELS)


read_item = device_function(SIXTEEN(types.int32), _read_item)
"""`read_item(at)`: its sixteen floats."""


def run_copier(size: int, threads: int) -> Any:
    """`copy_run(to, address, first)`: this thread's share of `size` bytes, `first` bytes from both on."""
    whole, rest = divmod(size, 16 * threads)
    text = ["{ .reg .pred p; .reg .b32 to; .reg .b64 at; add.s32 to, $0, $2; cvt.s64.s32 at, $2; add.s64 at, at, $1;"]
    units = [
        f"cp.async.cg.shared.global [to + {16 * threads * i}], [at + {16 * threads * i}], 16;" for i in range(whole + 1)
    ]
    text += units[:whole] + [f"setp.lt.s32 p, $2, {rest}; @p {units[whole]}"] * (rest > 0)

    def generate(builder: Any, arguments: list[Any]) -> None:
        emit(builder, "\n".join([*text, "}"]), "", "rlr", arguments)

    return device_function(types.void(types.int32, types.int64, types.int32), generate)

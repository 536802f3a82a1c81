"""The products of a weight gradient: matrices whose slots are summed over, read transposed by the tensor cores."""

from typing import Any

from numba.cuda import types

from ..ptx import device_function, emit, unpacked
from .arithmetic import Arithmetic
from .wgmma import accumulators


def outer_products(arithmetic: Arithmetic, taps: int, slots: int) -> Any:
    """`multiply(sums, a, b, part_step, group_step, tap_step)`: the products of one stage of a weight gradient, for 64
    filters, 32 channels and `taps` taps, summed over `slots` slots; the sums start anew. Waits for all of them.

    Both operands lie with slots down and channels across, 8 channels in 16 bytes. a is where the lane reads its share
    of dy: through registers, transposed, once for all taps, since shared memory could not feed it to each of them. b is
    the low word of x's descriptor, and the steps are x's, in units of 16 bytes.
    """
    count, part_bytes, together = 16 * taps, 64 * slots * 2, 3
    a, b, part_step, group_step, tap_step = (f"${count + i}" for i in range(5))
    name = f"wgmma.mma_async.sync.aligned.m64n32k16.f32.{arithmetic.kind}.{arithmetic.kind}"
    shares = ["{" + ",".join(f"dy{4 * i + j}" for j in range(4)) + "}" for i in range(3)]
    text = [
        "{ .reg .pred added, more; .reg .b32 dy<12>, la, lb, at, left; .reg .b64 db; setp.ne.s32 added, 0, 0;",
        f"mov.b32 la, {a}; mov.b32 lb, {b}; mov.b32 left, {slots // 16};",
    ]

    def read(share: int, offset: int) -> None:
        text.append(f"ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {shares[share]}, [la+{offset}];")

    def multiply(share: int, part: int, slot: int) -> None:
        text.append(f"mad.lo.s32 at, {part_step}, {part}, lb; add.s32 at, at, {slot};")
        for tap in range(taps):
            sums = "{" + ",".join(f"${16 * tap + i}" for i in range(16)) + "}"
            text.append(f"mov.b64 db, {{at, {group_step}}}; {name} {sums}, {shares[share]}, db, added, 1, 1, 1;")
            text.append(f"add.s32 at, at, {tap_step};")
        text.append("setp.eq.s32 added, 0, 0;")

    def finish() -> None:
        text.append("wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;")

    # The small products of all slots first, the great ones on top: each of those then is cut off only once.
    *small, great = arithmetic.products
    if small:
        nounroll = r"\22nounroll\22"  # A quotation mark in LLVM's assembly.
        text.append(f"next_${{:uid}}: .pragma {nounroll}; sub.s32 left, left, 1; setp.ne.s32 more, left, 0;")
        for part in range(arithmetic.parts):
            read(part, part * part_bytes)
        text.append("wgmma.fence.sync.aligned;")
        for part_a, part_b in small:
            multiply(part_a, part_b, 0)
        finish()
        text.append("add.s32 la, la, 256; add.s32 lb, lb, 16; @more bra next_${:uid};")
        text.append(f"mov.b32 la, {a}; mov.b32 lb, {b};")
    for first in range(0, slots // 16, together):
        for i in range(together):
            read(i, great[0] * part_bytes + 256 * (first + i))
        text.append("wgmma.fence.sync.aligned;")
        for i in range(together):
            multiply(i, great[1], 16 * (first + i))
        finish()
    text.append("}")

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        values = unpacked(builder, arguments[0], count)
        return emit(builder, "\n".join(text), "f" * count, "rrrrr", arguments[1:], values)

    kind = accumulators(2 * count)
    return device_function(kind(kind, *[types.int32] * 5), generate)


def outer_storer(taps: int, pitch: int) -> Any:
    """`store(sums, corner)`: a thread's share of 64 x 32 sums of each tap to device memory, `pitch` words a row."""
    count = 16 * taps
    stores = []
    for i in range(0, count, 2):
        tap, pair, below = i // 16, i % 16 // 4, i // 2 % 2
        at = 4 * ((64 * tap + 8 * below) * pitch + 8 * pair)
        stores.append(f"st.global.v2.f32 [${count}+{at}], {{${i}, ${i + 1}}};")

    def generate(builder: Any, arguments: list[Any]) -> None:
        values = unpacked(builder, arguments[0], count)
        emit(builder, "\n".join(stores), "", "f" * count + "l", [*values, arguments[1]])

    return device_function(types.void(accumulators(2 * count), types.int64), generate)

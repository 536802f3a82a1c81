"""The fast CUDA kernels on machines without a GPU: they compile for Hopper as they count on, and their plans are right.

What the kernels do with a plan is done here in numpy, on whole numbers, and must equal the specification.
"""

import importlib
import itertools
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numba import config
from test_cuda_ptx import compilers_are_installed

from kernelproof import spec
from kernelproof.spec.window import Window

pytestmark = [
    pytest.mark.skipif(bool(getattr(config, "ENABLE_CUDASIM", 0)), reason="the simulator knows no PTX"),
    pytest.mark.skipif(not compilers_are_installed(), reason="no libNVVM: pip install 'kernelproof[ptx]'"),
]


NAMES = (
    "cuda_cores.elementwise", "cuda_cores.few_outputs", "cuda_cores.first_block", "cuda_cores.input_gradient",
    "cuda_cores.launch_direct",
    "cuda_cores.pool_by_twos", "cuda_cores.update", "host.driver", "host.dry", "tensor_cores.again",
    "tensor_cores.launch_conv", "tensor_cores.launch_dweight", "tensor_cores.loaders", "tensor_cores.plan",
    "tensor_cores.rungs", "tensor_cores.slots", "tensor_cores.warp_gradient", "tensor_cores.weight_gradient",
    "tensor_cores.wide_dweight", "tensor_cores.wide_gradient",
)  # fmt: skip


def modules() -> Any:
    """The fast kernels' modules, which the simulator cannot import."""
    found = (importlib.import_module(f"kernelproof.kernels.cuda.{name}") for name in NAMES)
    return SimpleNamespace(**{name.rpartition(".")[2]: module for name, module in zip(NAMES, found, strict=True)})


def ptxas() -> str | None:
    """The assembler of the extra `ptx`, or the toolkit's."""
    import nvidia  # pyright: ignore[reportMissingImports]

    found = [str(path) for folder in nvidia.__path__ for path in Path(folder).glob("*/bin/ptxas")]
    return found[0] if found else shutil.which("ptxas")


def fast_kernels() -> Iterator[Any]:
    """Kernels of every kind, with the bytes of spills that they may have."""
    if getattr(config, "ENABLE_CUDASIM", 0) or not compilers_are_installed():
        return
    m = modules()
    taps = ((3, 3, 16, 136), (1, 2, 16, 104), (1, 1, 32, 128, False))
    blocks = [m.slots.Block("strict", *each) for each in taps]
    blocks += [m.slots.Block(precision, *taps[0]) for precision in ("fast", "tf32")]
    blocks += [m.slots.Block(precision, 1, 1, 64, 128, False, True) for precision in ("strict", "fast")]
    blocks += [m.slots.Block(*each, gathered=True) for each in (("strict", 1, 1, 32, 136), ("fast", 1, 1, 32, 128))]
    blocks += [m.slots.Block(precision, 3, 3, 16, 128, stacked=True) for precision in ("strict", "fast")]
    for block in blocks:
        pack, convolve = m.launch_conv._kernels(block)
        # 68 sums in each of two tuples, and the scales of images or where taps lie, leave a few registers too few.
        spills = 288 if block.arithmetic.scaled or block.gathered else 96
        yield pytest.param(convolve, spills, id=convolve.name)
        yield pytest.param(pack, 0, id=pack.name)
    for key in (("strict", 3, True), ("strict", 1, False), ("bf16x4", 2, False), ("bf16", 3, False)):
        for kernel in m.launch_dweight._kernels(*key):
            yield pytest.param(kernel, 0, id=kernel.name)
    for arithmetic in ("strict", "bf16"):
        kernel, _ = m.launch_dweight._kernels(arithmetic, 1, False, gathered=True)
        yield pytest.param(kernel, 16, id=kernel.name)  # 896 threads have 72 registers each.
    for key in ((3, 7, 7, 2, 2, 4), (1, 3, 3, 1, 1, 4), (4, 5, 5, 1, 1, 4), (1, 1, 1, 3, 3, 4), (3, 7, 7, 1, 2, 2)):
        kernel = m.input_gradient.kernel(m.input_gradient.Shape(*key))
        yield pytest.param(kernel, 0, id=kernel.name)
    for key in (("strict", 3), ("strict", 1), ("bf16x4", 3), ("bf16", 1)):
        for kernel in m.wide_dweight._kernels(*key, 4, 3):
            yield pytest.param(kernel, 0, id=f"{kernel.name} of {key}")
    others = [
        m.launch_conv._greatest, m.again.output_again, m.again.input_gradient_again, m.launch_dweight.again,
        m.wide_dweight.again, m.launch_direct._kernel("channels", 1, 3, 3, 4, 2),
        m.launch_direct._kernel("channels", 3, 3, 3, 1, 1), m.launch_direct._kernel("filters", 1, 3, 3),
        m.launch_direct._kernel("filters", 3, 4, 4), m.launch_direct._gradient_kernel(3, 3, 8, 3),
        m.launch_direct._gradient_kernel(1, 7, 8, 7), m.launch_direct._gradient_kernel(1, 1, 1, 1),
        m.launch_direct.add_shares(4), m.launch_direct.add_shares(32), *m.elementwise.KERNELS.values(),
        m.elementwise._PLANE_SUMS, m.elementwise._GATED_SUMS, m.pool_by_twos._POOL,
        m.launch_conv.laid_out.kernel("fast", 0.0),
        m.pool_by_twos._UNPOOL, m.few_outputs._forward(10, 4), m.few_outputs._forward(1, 2), m.few_outputs._dx(10),
        m.few_outputs._dweight(16), *m.first_block._kernels(1, 3, 3, 8), *m.first_block._kernels(3, 3, 3, 3),
        m.update._UPDATE,
    ]  # fmt: skip
    for kernel in others:
        yield pytest.param(kernel, 0, id=kernel.name)


@pytest.mark.parametrize("word", ["strict", "fast", "bf16x4"])
def test_stacked_parts_give_each_product_once_and_beside_them_only_smaller_ones(word: str) -> None:
    arithmetic = modules().slots.ARITHMETIC[word]
    lines = -(-arithmetic.parts // 2)
    given = [(2 * pair + half, right) for pair, right in arithmetic.products_of_stacked for half in (0, 1)]
    assert len(set(given)) == len(given)
    assert set(arithmetic.products) <= set(given)
    assert {pair for pair, _ in arithmetic.products_of_stacked} == set(range(lines))
    least = max(left + right for left, right in arithmetic.products)
    beside = {each for each in given if each[0] < arithmetic.parts} - set(arithmetic.products)
    assert all(left + right > least - 1 for left, right in beside)
    assert len(arithmetic.products_of_stacked) < len(arithmetic.products)


@pytest.mark.parametrize(("kernel", "spills"), list(fast_kernels()))
def test_kernel_compiles_for_hopper_within_its_registers(
    kernel: Any, spills: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hopper = SimpleNamespace(compute_capability=(9, 0))
    monkeypatch.setattr("numba.cuda.dispatcher.get_current_device", lambda: hopper)
    text = kernel.ptx((9, 0))
    assert f".target sm_90{kernel.features}" in text
    # A maximum of integers is the same in any order; no other result may depend on it.
    assert set(re.findall(r"(?<![.\w])(?:atom|red)\.[\w.]+", text)) <= {"red.global.max.u32"}
    assert not re.search(r"\.f64\b", text)
    assembler = ptxas()
    if assembler is None:
        pytest.skip("no ptxas")
    source = tmp_path / "kernel.ptx"
    source.write_text(text)
    came = subprocess.run(
        [assembler, f"-arch=sm_90{kernel.features}", "-v", source, "-o", tmp_path / "kernel.cubin"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "wgmma.mma_async instructions are serialized" not in came.stderr
    stored, loaded = map(int, re.findall(r"(\d+) bytes spill", came.stderr))
    assert max(stored, loaded) <= spills
    assert int(re.findall(r"Used (\d+) registers", came.stderr)[0]) * kernel.threads <= 65536


class Strided:
    """What plans look at in an array: its shape, strides, scalars and place."""

    def __init__(self, array: np.ndarray) -> None:
        self.shape, self.strides, self.dtype, self.size = array.shape, array.strides, array.dtype, array.size
        self.place = SimpleNamespace(device=0)


GEOMETRIES = [
    # x, weight, stride, padding, dilation, groups
    ((2, 3, 5, 6), (4, 3, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    ((2, 3, 5, 6), (4, 3, 3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((3, 2, 5, 4), (2, 2, 3, 3), (1, 1), ((2, 0), (0, 3)), (1, 1), 1),
    ((1, 2, 7, 9), (2, 2, 3, 3), (1, 1), ((4, 4), (3, 5)), (2, 1), 1),
    ((2, 2, 7, 8), (3, 2, 3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 1),
    ((2, 2, 9, 8), (3, 2, 7, 7), (2, 2), ((3, 3), (3, 3)), (1, 1), 1),
    ((2, 4, 6, 7), (6, 2, 2, 4), (1, 3), ((0, 1), (2, 1)), (1, 1), 2),
    ((2, 2, 9, 9), (2, 2, 3, 2), (2, 3), ((1, 0), (0, 2)), (2, 2), 1),
    ((2, 3, 4, 4), (5, 3, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((2, 3, 5, 4), (5, 3, 1, 1), (2, 2), ((1, 0), (0, 1)), (1, 1), 1),
    ((1, 1, 6, 12), (2, 1, 1, 9), (1, 1), ((0, 0), (4, 4)), (1, 1), 1),
    ((2, 2, 3, 3), (2, 2, 3, 3), (3, 3), ((1, 1), (1, 1)), (1, 1), 1),
]


def drawn(geometry: Any) -> tuple[np.ndarray, np.ndarray, Window, int]:
    x_shape, weight_shape, stride, padding, dilation, groups = geometry
    generator = np.random.default_rng(5)
    x, weight = (generator.integers(-9, 10, shape) for shape in (x_shape, weight_shape))
    return x, weight, Window(weight_shape[2:], stride, padding, dilation), groups


def at(memory: np.ndarray, first: int, strides: tuple[int, ...], *index: int) -> int:
    """An entry of memory by its strides in elements."""
    return int(memory.reshape(-1)[first + sum(step * i for step, i in zip(strides, index, strict=True))])


def carry_out(it: Any, problem: Any, x: np.ndarray, weight: np.ndarray, y: np.ndarray, pixel: int, tap: int) -> None:
    """What the kernel does with a plan, slot by slot, into the memory of y."""
    g, block = it.geometry, it.block
    assert it.shared <= block.rung.shared_memory <= 227 * 1024
    assert g.stages >= 2
    assert g.tiles == it.pixel_tiles * g.groups * g.filter_blocks

    def place(slot: int) -> tuple[int, int, int]:
        (row, column), shift = divmod(slot, g.pitch), (g.pitch_multiplier % 2**32, g.pitch_shift)
        assert slot * shift[0] >> shift[1] == row
        return row // g.rows, row % g.rows, column

    def pixels_of(slot: int, a: int, b: int, group: int) -> list[int]:
        n, row, column = place(slot)
        h, w = row * g.stride_h + a * g.phase_h - g.top, column * g.stride_w + b * g.phase_w - g.left
        if n >= g.images or not (0 <= h < g.height and 0 <= w < g.width):
            return [0] * g.channels
        return [at(x, 0, problem.x_strides, n, group * g.channels + c, h, w) for c in range(g.channels)]

    taps = list(np.ndindex(g.phase_rows, g.phase_columns, block.rows * block.row))
    laid = laid_out(x, it.layout) if block.laid else None
    apart = {(a, b): a * g.phase_h // g.stride_h * g.pitch + b * g.phase_w // g.stride_w for a, b, _ in taps}
    for shift in apart.values() if block.laid else ():
        # What a stage brings reaches from the first of eight slots to the last that the tap reads, and no further.
        assert shift % 8 + block.pixels <= g.slots
        assert (it.pixel_tiles - 1) * block.pixels + shift // 8 * 8 + g.slots <= it.layout.slots
        assert shift <= it.layout.reach

    def gathered(slot: int, group: int, k: int) -> int:
        """The sum over all taps of all channels, each of which is a channel of its own."""
        assert g.channels % math.prod(problem.taps) == 0
        n, row, column = place(slot)
        total, per_group = 0, g.channels // math.prod(problem.taps)
        for c, r, s in np.ndindex(per_group, *problem.taps):
            h, w = row * g.stride_h + r * g.phase_h - g.top, column * g.stride_w + s * g.phase_w - g.left
            if 0 <= h < g.height and 0 <= w < g.width:
                value = at(x, 0, problem.x_strides, n, group * per_group + c, h, w)
                f = it.filters
                v = (c * problem.taps[0] + r) * problem.taps[1] + s
                total += value * at(weight, tap, (f.w_group, f.w_filter, f.w_channel), group, k, v)
        return total

    def inputs_of(slot: int, a: int, b: int, reach: int, group: int) -> list[int]:
        if laid is None:
            return pixels_of(slot + reach, a, b, group)
        phase = a * g.phase_h % g.stride_h * g.laid_columns + b * g.phase_w % g.stride_w
        return laid[phase, group, slot + apart[a, b]].tolist()

    for slot in range(it.pixel_tiles * block.pixels):
        n, p, q = place(slot)
        if n >= g.images or p >= g.p or q >= g.q:
            continue
        for group in range(g.groups):
            for k in range(g.filters):
                total = gathered(slot, group, k) if block.gathered else 0
                for a, b, t in () if block.gathered else taps:
                    down, across = divmod(t, block.row)
                    reach = down * g.row_step + across * g.tap_step
                    assert block.pixels + reach <= g.slots
                    r, s = a + down, b + across * g.phase_columns
                    if s < problem.taps[1]:
                        total += sum(
                            value * at(weight, tap, problem.w_strides, group, k, c, r, s)
                            for c, value in enumerate(inputs_of(slot, a, b, reach, group))
                        )
                y.reshape(-1)[
                    pixel + n * g.y_n + (group * g.filters + k) * g.y_k + p * g.y_h + q * g.y_w
                ] = total  # fmt: skip


@pytest.mark.parametrize("columns", [64, 104, 136])
def test_every_thread_looks_taps_up_within_the_table(columns: int) -> None:
    m = modules()
    block = m.slots.Block("fast", 1, 1, 32, columns, side_by_side=False, gathered=True)
    halves, slots, together = block.channels // 16, block.pixels, 2 * m.slots.LOADERS
    items = -(-halves * slots // together) * together  # Those that no thread keeps among them.
    firsts = {16 * int(m.loaders.half_of.py_func(item, slots, halves)) for item in range(items)}
    assert firsts == {0, block.channels - 16}


RUNGS = ("HOPPER", "AMPERE", "ADA")


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_every_block_of_a_plan_computes_the_convolution(
    geometry: Any, rung: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = modules()
    for least in ("LEAST_CHANNELS", "LEAST_FILTERS", "LEAST_TERMS"):
        monkeypatch.setattr(m.plan, least, 1)
    x, weight, window, groups = drawn(geometry)
    right = spec.conv2d(
        x, weight, stride=window.stride, padding=window.padding, dilation=window.dilation, groups=groups
    )
    y = np.empty(right.shape, np.int64)
    problem = m.launch_conv.forward(Strided(x), Strided(weight), Strided(y), window, groups)
    blocks = m.plan.splits(problem, "strict", getattr(m.rungs, rung))
    assert blocks[0].laid or blocks[0].gathered or blocks[0].rows == 3 or rung != "HOPPER"
    for block in blocks:
        y[...] = -999
        it = m.plan.numbers(problem, block)
        if it.geometry.stages == 2 or rung == "HOPPER":  # Else the plan takes the next of them.
            carry_out(it, problem, x, weight, y, 0, 0)
            np.testing.assert_array_equal(y, right)
    assert m.plan.explain(problem, "strict", getattr(m.rungs, rung)) is None


@pytest.mark.parametrize("geometry", [each for each in GEOMETRIES if 1 in (*each[2], max(each[4]))], ids=str)
@pytest.mark.parametrize(("laid", "rung"), [(False, "HOPPER"), (True, "HOPPER"), (False, "ADA")])
def test_phases_of_an_input_gradient_are_convolutions_of_dy(
    geometry: Any, laid: bool, rung: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = modules()
    for least in ("LEAST_CHANNELS", "LEAST_FILTERS", "LEAST_TERMS"):
        monkeypatch.setattr(m.plan, least, 1 if laid else 2**31)
    x, weight, window, groups = drawn(geometry)
    if max(window.stride) > 1 and max(window.dilation) > 1:
        pytest.skip("left to the plain kernel")
    options = {"stride": window.stride, "padding": window.padding, "dilation": window.dilation, "groups": groups}
    dy = np.random.default_rng(6).integers(-9, 10, spec.conv2d(x, weight, **options).shape)
    right = spec.conv2d_dx(dy, weight, x.shape, **options)
    dx = np.zeros(right.shape, np.int64)
    phases = m.launch_conv.backward(Strided(dy), Strided(weight), Strided(dx), window, groups)
    for phase in phases:
        block = m.plan.splits(phase.problem, "strict", getattr(m.rungs, rung))[0]
        assert block.laid is laid or block.gathered or block.rows == 3
        it = m.plan.numbers(phase.problem, block)
        if rung != "HOPPER":  # The first block may not fit.
            it = m.plan.plan(phase.problem, "strict", 72, False, m.rungs.ADA)
        carry_out(it, phase.problem, dy, weight, dx, phase.first_pixel, phase.first_tap)
    np.testing.assert_array_equal(dx, right)
    dx[...] = 0
    plans = m.plan.plans_of_phases([each.problem for each in phases], "strict", 132, getattr(m.rungs, rung))
    if laid and len({each.problem.before for each in phases}) == 1:
        assert len({it.layout for it in plans}) == len({it.pixel_tiles for it in plans}) == 1
    for phase, it in zip(phases, plans, strict=True):
        carry_out(it, phase.problem, dy, weight, dx, phase.first_pixel, phase.first_tap)
    np.testing.assert_array_equal(dx, right)


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_tiles_of_a_weight_gradient_are_all_of_it_once(
    geometry: Any, rung: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = modules()
    together = m.weight_gradient.SLOTS if rung == "HOPPER" else m.warp_gradient.SLOTS
    monkeypatch.setattr(m.launch_dweight, "multiprocessors", lambda device: 132)
    x, weight, window, groups = drawn(geometry)
    options = {"stride": window.stride, "padding": window.padding, "dilation": window.dilation, "groups": groups}
    dy = np.random.default_rng(6).integers(-9, 10, spec.conv2d(x, weight, **options).shape)
    right = spec.conv2d_dweight(dy, x, weight.shape, **options)
    it = m.launch_dweight.plan(*map(Strided, (dy, x, weight)), window, groups, "strict", getattr(m.rungs, rung))
    g, came = it.geometry, np.zeros(right.shape, np.int64)
    assert it.shared <= it.rung.shared_memory <= 227 * 1024

    def entry(of: np.ndarray, slot: int, channel: int, a: int, b: int, is_x: bool) -> int:
        row, column = divmod(slot, g.pitch)
        n, row = divmod(row, g.rows)
        h, w = (row * g.stride_h + a - g.top, column * g.stride_w + b - g.left) if is_x else (row, column)
        height, width = (g.height, g.width) if is_x else (g.p, g.q)
        return int(of[n, channel, h, w]) if n < g.images and 0 <= h < height and 0 <= w < width else 0

    per_group = weight.shape[0] // groups
    for row_block, phase, column_block, t, line in np.ndindex(
        g.row_blocks, g.column_phases, g.column_blocks, it.taps, 3 if it.rows_as_warpgroups else 1
    ):
        r = 3 * row_block + line if it.rows_as_warpgroups else row_block
        s = phase + (column_block * it.taps + t) * g.column_phases
        if r >= g.column or s >= g.row:
            continue
        a, b = 0 if it.rows_as_warpgroups else r * g.dilation_h, phase * g.dilation_w
        reach = (column_block * it.taps + t) * g.tap_step + line * g.warpgroup_step
        assert together + line * g.warpgroup_step + t * g.tap_step <= g.slots
        for k, c in np.ndindex(weight.shape[:2]):
            channel = k // per_group * g.channels + c
            came[k, c, r, s] += sum(
                entry(dy, slot, k, 0, 0, False) * entry(x, slot + reach, channel, a, b, True)
                for slot in range(g.chunks * together)
            )
    np.testing.assert_array_equal(came, right)


@pytest.mark.parametrize(
    ("tiles", "chunks", "blocks"), [(1, 1, 132), (96, 43, 132), (5, 7, 4), (3, 200, 132), (300, 9, 132)]
)
def test_every_stage_of_a_wide_weight_gradient_is_in_one_span(
    tiles: int, chunks: int, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = modules()
    monkeypatch.setattr(m.wide_gradient, "quotient_and_rest", lambda number, divisor: divmod(int(number), int(divisor)))
    monkeypatch.setattr(m.wide_gradient, "divided", lambda number, multiplier, shift: int(number) * multiplier >> shift)
    units = tiles * chunks
    multiplier, shift = m.plan.division(units)
    g = SimpleNamespace(
        tiles=tiles, chunks=chunks, units=units, units_multiplier=multiplier % 2**32, units_shift=shift,
        spans=min(blocks, units),
    )  # fmt: skip
    it = m.wide_dweight.Plan("strict", 1, g, None, None, 0)
    spans = [m.wide_gradient.span_of.py_func(block, g) for block in range(g.spans)]
    assert spans[0][0] == 0
    assert spans[-1][1] == tiles * chunks
    assert all(end == first for (_, end), (first, _) in itertools.pairwise(spans))
    assert {end - first for first, end in spans} <= {tiles * chunks // g.spans, -(-tiles * chunks // g.spans)}
    for block, (first, end) in enumerate(spans):
        assert {m.wide_gradient.span_with.py_func(unit, g) for unit in range(first, end)} == {block}
    for tile in range(tiles):  # Its shares are there to be added, whatever its spans.
        first, last = (m.wide_gradient.span_with.py_func(unit, g) for unit in (tile * chunks, (tile + 1) * chunks - 1))
        assert 1 <= last - first + 1 <= it.shares


WIDE = [
    *GEOMETRIES,
    ((2, 3, 9, 11), (4, 3, 5, 5), (1, 1), ((2, 2), (1, 3)), (1, 2), 1),
    ((2, 3, 8, 7), (4, 3, 4, 3), (3, 1), ((1, 2), (1, 1)), (2, 2), 1),
    ((1, 130, 4, 5), (66, 130, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    ((1, 140, 4, 5), (280, 70, 3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 2),
    # Without rows of padding: 7 of 8 rows of 8 slots, 13 of 15 of 8, 6 of 7 of 8, 4 of 5 of 16 and strided.
    ((5, 3, 7, 7), (4, 3, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    ((3, 3, 13, 6), (4, 3, 5, 5), (1, 1), ((2, 2), (2, 2)), (1, 1), 1),
    ((4, 3, 6, 7), (4, 3, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    ((3, 3, 4, 15), (4, 3, 3, 2), (1, 1), ((1, 1), (1, 0)), (1, 1), 1),
    ((3, 3, 14, 14), (4, 3, 3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 1),
]


@pytest.mark.parametrize("geometry", WIDE, ids=str)
def test_laid_out_operands_meet_in_a_wide_weight_gradient(geometry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    m = modules()
    for least in ("LEAST_CHANNELS", "LEAST_OF_STRIDED"):
        monkeypatch.setattr(m.wide_dweight, least, 1)
    monkeypatch.setattr(m.wide_gradient, "quotient_and_rest", divmod)
    x, weight, window, groups = drawn(geometry)
    options = {"stride": window.stride, "padding": window.padding, "dilation": window.dilation, "groups": groups}
    dy = np.random.default_rng(6).integers(-9, 10, spec.conv2d(x, weight, **options).shape)
    right = spec.conv2d_dweight(dy, x, weight.shape, **options)
    it = m.wide_dweight.plan(*map(Strided, (dy, x, weight)), window, groups, "strict", 132)
    g, came = it.geometry, np.full(right.shape, -999)
    slots, warpgroups = m.wide_gradient.slots_of(it.taps), m.wide_gradient.warpgroups_of(it.taps)
    assert it.shared <= 227 * 1024
    assert slots % 16 == g.slots % 8 == 0
    assert g.chunks * slots == g.y_slots
    laid_x, laid_dy = laid_out(x, it.x), laid_out(dy, it.dy)
    stages = [stage_of_x(m, chunk * slots, g) for chunk in range(g.chunks)]
    for tile, warpgroup in np.ndindex(g.tiles, warpgroups):
        rest, row_block = divmod(tile, g.row_blocks)
        rest, r = divmod(rest, g.rows)
        rest, channel_block = divmod(rest, g.channel_blocks)
        group, filter_block = divmod(rest, g.filter_blocks)
        down, across = r * g.dilation_h, row_block * it.taps * g.dilation_w
        phase = down % g.stride_h * g.phase_columns + across % g.stride_w
        shift = down // g.stride_h * g.pitch + across // g.stride_w
        apart = warpgroup * g.dilation_w if it.taps == 3 else 0
        s = row_block * it.taps + (warpgroup if it.taps == 3 else 0)
        # What a stage brings reaches from the first of eight slots to the last that any tap reads, and no further.
        assert shift % 8 + apart + slots <= g.slots
        assert stages[-1].max() + shift // 8 * 8 < g.x_slots
        k = filter_block * m.wide_gradient.filters_of(it.taps) + (warpgroup * 64 if it.taps == 1 else 0)
        c = channel_block * 128
        filters, channels = slice(k, min(k + 64, g.filters)), slice(c, min(c + 128, g.channels))
        if s >= g.row or k >= g.filters:
            continue
        its_dy = laid_dy[0, group, : g.y_slots, filters]
        first = shift % 8 + apart
        met = np.concatenate([shift // 8 * 8 + stage[first : first + slots] for stage in stages])
        its_x = laid_x[phase, group, met, channels]
        of_group = slice(group * g.filters + k, group * g.filters + filters.stop)
        assert np.all(came[of_group, channels, r, s] == -999)
        came[of_group, channels, r, s] = its_dy.T @ its_x
    np.testing.assert_array_equal(came, right)


def stage_of_x(m: Any, slot: int, g: Any) -> np.ndarray:
    """The slots of x that are brought with those of dy from one on, for a tile that reads no further on."""
    first, of_image = m.wide_gradient.x_of.py_func(slot, g)
    assert first % 8 == of_image % 8 == 0  # They keep their places in the pattern of units.
    found = first + np.arange(g.slots)
    found[of_image:] += g.x_image - g.y_image
    return found


def laid_out(x: np.ndarray, g: Any) -> np.ndarray:
    """`[phase, group, slot, channel]`, as the kernel lays out an array."""
    laid = np.zeros((g.phases, g.groups, g.slots, g.channels), np.int64)
    for phase, group, slot in np.ndindex(*laid.shape[:3]):
        a, b = divmod(phase, g.phase_columns)
        row, column = divmod(slot, g.pitch)
        n, row = divmod(row, g.rows)
        h, w = row * g.stride_h + a - g.top, column * g.stride_w + b - g.left
        if n < g.images and 0 <= h < g.height and 0 <= w < g.width:
            laid[phase, group, slot] = x[n, group * g.channels : (group + 1) * g.channels, h, w]
    return laid


FEW_CHANNELS = [
    *(each for each in GEOMETRIES if each[1][1] <= 4 and each[4] == (1, 1)),
    ((2, 3, 9, 8), (8, 3, 7, 7), (2, 2), ((3, 3), (3, 3)), (1, 1), 1),
    ((1, 1, 5, 6), (8, 1, 3, 3), (2, 3), ((1, 0), (2, 1)), (1, 1), 1),
    ((2, 2, 7, 7), (8, 2, 2, 5), (3, 1), ((0, 2), (4, 1)), (1, 1), 1),
    ((1, 4, 8, 8), (8, 2, 1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1), 2),
    ((1, 2, 8, 9), (8, 1, 3, 3), (2, 2), ((5, 4), (3, 3)), (1, 1), 2),
    ((1, 3, 6, 6), (8, 3, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
]


@pytest.mark.parametrize("geometry", FEW_CHANNELS, ids=str)
def test_windows_of_an_input_gradient_are_all_of_it_once(geometry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    m, launched = modules(), []
    monkeypatch.setattr(m.input_gradient, "LEAST_FILTERS", 1)
    monkeypatch.setattr(m.input_gradient, "multiprocessors", lambda device: 132)
    x, weight, window, groups = drawn(geometry)
    options = {"stride": window.stride, "padding": window.padding, "dilation": window.dilation, "groups": groups}
    dy = np.random.default_rng(6).integers(-9, 10, spec.conv2d(x, weight, **options).shape)
    right = spec.conv2d_dx(dy, weight, x.shape, **options)
    problem = m.launch_conv.forward(*map(Strided, (x, weight, dy)), window, groups)
    shape = m.input_gradient.shape_of(problem)
    monkeypatch.setattr(m.input_gradient, "kernel", lambda shape: lambda *a, **k: launched.append(a[-1]))
    place = SimpleNamespace(device=0, stream=0)
    arrays = (SimpleNamespace(place=place, address=0) for _ in range(3))
    m.input_gradient.launch(*arrays, problem, shape)
    (g,), came, (down, across) = launched, np.full(right.shape, -(10**6)), shape.reach
    channels, per_group = weight.shape[1], weight.shape[0] // groups
    for n, group, line, column in np.ndindex(len(x), groups, g.windows // g.columns, g.columns):
        first = line * shape.tall
        sums = np.zeros((channels, shape.stride_h, shape.stride_w, shape.tall), np.int64)
        for k in range(group * per_group, (group + 1) * per_group):
            rows, columns = first - g.above + np.arange(down + shape.tall - 1), column - g.before + np.arange(across)
            inside = ((rows >= 0) & (rows < g.p))[:, None] & ((columns >= 0) & (columns < g.q))
            inputs = np.where(inside, dy[n, k][np.ix_(rows.clip(0, g.p - 1), columns.clip(0, g.q - 1))], 0)
            for c, r, s in np.ndindex(channels, shape.rows, shape.row):
                (j, a), (i, b) = divmod(r, shape.stride_h), divmod(s, shape.stride_w)
                read = inputs[down - 1 - j : down - 1 - j + shape.tall, across - 1 - i]
                sums[c, a, b] += read * weight[k, c, r, s]
        for c, a, b, t in np.ndindex(sums.shape):
            h, w = (first + t) * shape.stride_h + a - g.skipped_h, column * shape.stride_w + b - g.skipped_w
            if 0 <= h < x.shape[2] and 0 <= w < x.shape[3]:
                at = n, group * channels + c, h, w
                assert came[at] == -(10**6)
                came[at] = sums[c, a, b, t]
    np.testing.assert_array_equal(came, right)


def test_division_is_exact_below_two_to_the_31() -> None:
    m = modules()
    generator = np.random.default_rng(7)
    divisors = [1, 2, 3, 7, 57, 64, 113, 2**16 - 1, 2**16 + 1, 2**30, 2**31 - 1, *generator.integers(1, 2**31, 200)]
    for divisor in map(int, divisors):
        multiplier, shift = m.plan.division(divisor)
        multiples = [divisor * int(i) for i in generator.integers(0, 2**31 // divisor + 1, 20)]
        near = {each + d for each in multiples for d in (-1, 0, 1)} | {0, 2**31 - 1}
        for number in (each for each in near if 0 <= each < 2**31):
            assert number * (multiplier % 2**32) >> shift == number // divisor


def problem_of(m: Any, **changes: Any) -> Any:
    sizes = {
        "images": 8, "groups": 1, "channels": 64, "filters": 64, "taps": (3, 3), "image": (56, 56), "output": (56, 56),
        "stride": (1, 1), "before": (1, 1), "dilation": (1, 1), "x_strides": (1, 1, 1, 1),
        "w_strides": (1, 1, 1, 1, 1), "y_strides": (1, 1, 1, 1),
    }  # fmt: skip
    return m.plan.Problem(**sizes | changes)


@pytest.mark.parametrize(
    ("inside", "outside", "reason"),
    [
        ({}, {"images": 0}, "something to compute"),
        ({}, {"channels": 0}, "something to sum"),
        ({"groups": 64, "channels": 4, "filters": 4}, {"groups": 64, "channels": 3, "filters": 4}, "64 times"),
        ({}, {"images": 2**20}, "31 bits"),
        ({"x_strides": (2**29 - 1, 1, 1, 1)}, {"x_strides": (2**29, 1, 1, 1)}, "32-bit"),
    ],
)
def test_a_precondition_holds_on_one_side_of_its_boundary(inside: Any, outside: Any, reason: str) -> None:
    m = modules()
    assert m.plan.explain(problem_of(m, **inside), "strict") is None
    assert reason in m.plan.explain(problem_of(m, **outside), "strict")


def test_a_filter_is_taken_row_by_row_where_two_stages_of_it_no_longer_fit() -> None:
    m = modules()
    rows = [
        m.plan.plan(problem_of(m, images=1, image=(9, w), output=(9, w)), "strict", 132).block.rows
        for w in range(8, 400)
    ]
    assert rows == sorted(rows, reverse=True)
    assert {3, 1} == set(rows)

"""Convolution and its input gradient on tensor cores: what is launched, and what is computed again.

`pack` splits the weights and clears the flags; the kernel of implicit_gemm.py computes, on x as it is or as laid_out.py
lays it out, or that of warp_gemm.py where the GPU is no Hopper. Where x is scaled each image is looked through for its
greatest value first. `again` has the plain kernel compute what a NaN, an infinity or a magnitude beyond the split's
range took part in: it looks at flags in device memory, nothing waits for the host, and nobody pays for values that are
not there.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..cuda_cores import input_gradient, launch_direct
from ..host.arrays import DeviceArray, image_of, steps
from ..host.driver import Kernel, capability, fill_with_zeros, multiprocessors
from ..relu import in_one_piece
from . import implicit_gemm, laid_out, pack, warp_gemm
from .again import input_gradient_again, output_again, tiles_of
from .laid_out import Layout
from .plan import Plan, plan, plans_of_phases
from .preconditions import arithmetics_of, explain
from .problem import Problem
from .rungs import Rung, rung_of
from .slots import SHARES, Block


@functools.cache
def _kernels(block: Block) -> tuple[Kernel, Kernel]:
    """The packing and the convolution of a block, compiled when first launched."""
    stage, rung = (block.precision, block.rows, block.row, block.channels, block.filters), block.rung
    module, features = (warp_gemm, "") if rung.by_warps else (implicit_gemm, "a")
    return (
        Kernel(f"pack {stage}", pack.kernel_of(*stage), pack.ARGUMENTS, pack.threads_of(block.arithmetic)),
        Kernel(
            f"{module.__name__.rpartition('.')[2]} {block}", module.kernel_of(block), implicit_gemm.ARGUMENTS,
            block.threads, features, rung.shared_memory,
        ),
    )  # fmt: skip


LEAST_BLOCKS, MOST_BLOCKS = 128, 2048
"""That find the images' greatest values beside the packing: with fewer images, many blocks an image do, later; with
more, a block for each."""
_greatest = Kernel("greatest_of_images", pack.greatest_of_images, pack.GREATEST, pack.THREADS)


def serves(x: DeviceArray) -> bool:
    """Whether the array's scalars and GPU are the fast kernel's."""
    return x.dtype.name == "float32" and rung(x) is not None


def rung(x: DeviceArray) -> Rung | None:
    """The tensor cores of the array's GPU, if they are the fast kernel's."""
    return rung_of(capability(x.place.device))


def forward(x: DeviceArray, weight: DeviceArray, y: DeviceArray, window: Any, groups: int) -> Problem:
    """conv2d as a problem."""
    k, channels, rows, row = weight.shape
    w_k, w_c, w_r, w_s = steps(weight)
    return Problem(
        x.shape[0], groups, channels, k // groups, (rows, row), image_of(x), image_of(y), window.stride,
        (window.padding[0][0], window.padding[1][0]), window.dilation, steps(x),
        (k // groups * w_k, w_k, w_c, w_r, w_s), steps(y),
    )  # fmt: skip


class Phase(NamedTuple):
    """The input gradient at every stride-th pixel from `first` on, as a convolution of dy."""

    problem: Problem
    first: tuple[int, int]
    first_pixel: int
    first_tap: int


def backward(dy: DeviceArray, weight: DeviceArray, dx: DeviceArray, window: Any, groups: int) -> list[Phase]:
    """conv2d_dx as problems, one for each phase of the stride that any tap reads.

    Input pixel `h = i*stride + a` is read by tap `r = t*stride + r0` of output `p = i + e - t`, where
    `a + before = e*stride + r0`: a convolution of dy with every stride-th tap, the last one first.
    """
    k, channels, *_ = weight.shape
    w_k, w_c, w_r, w_s = steps(weight)
    x_n, x_c, x_h, x_w = steps(dx)
    down, across = (list(_phases(axis, dx, weight, window)) for axis in (0, 1))
    return [
        Phase(
            Problem(
                dy.shape[0], groups, k // groups, channels, (rows, row), image_of(dy), (p, q), (1, 1), (top, left),
                window.dilation, steps(dy), (k // groups * w_k, w_c, w_k, -r_step * w_r, -s_step * w_s),
                (x_n, x_c, window.stride[0] * x_h, window.stride[1] * x_w),
            ),
            (a, b), a * x_h + b * x_w, r * w_r + s * w_s,
        )
        for a, p, rows, r, r_step, top in down
        for b, q, row, s, s_step, left in across
    ]  # fmt: skip


def _phases(axis: int, dx: DeviceArray, weight: DeviceArray, window: Any) -> Iterator[tuple[int, ...]]:
    """Along one axis: first pixel, pixels, taps, the last of these taps, the step between them, padding before."""
    stride, dilation, before = window.stride[axis], window.dilation[axis], window.padding[axis][0]
    for a in range(min(stride, dx.shape[2 + axis])):
        # With stride 1 taps may be `dilation` apart; with both greater than 1 the fast kernel is not asked.
        e, first = divmod(a + before, stride) if stride > 1 else (before, 0)
        count = -(-(weight.shape[2 + axis] - first) // stride)
        if count > 0:
            pixels = -(-(dx.shape[2 + axis] - a) // stride)
            yield a, pixels, count, first + (count - 1) * stride, stride, (count - 1) * dilation - e


class Launched(NamedTuple):
    """The flags of what has to be computed again, and where x is laid out, if it is."""

    flags: DeviceArray
    laid: int


def launch(
    x: DeviceArray, weight: DeviceArray, bias: DeviceArray | None, y: DeviceArray, it: Plan, first_pixel: int = 0,
    first_tap: int = 0, laid_already: int = 0,
) -> Launched:  # fmt: skip
    """Pack the weights, lay x out where the plan asks for it and it is not there already, and convolve."""
    device, stream, images = x.place.device, x.place.stream, it.geometry.images
    packing, convolving = _kernels(it.block)
    workspace = x.place.empty((-(-(it.offsets[2] if laid_already else it.workspace) // 4),), "int32")
    flags = DeviceArray(workspace.owner[1 : 1 + it.pixel_tiles + it.lines], workspace.dtype, workspace.place)
    scales, packed, laid, _ = (workspace.address + offset for offset in it.offsets)
    scales = scales if it.block.arithmetic.scaled else 0
    known = x.greatest.address if x.greatest is not None else 0
    size = x.size // x.shape[0] if scales and not known else 0
    blocks = it.lines // pack.together_of(it.block.arithmetic)
    are_many = size > 0 and LEAST_BLOCKS <= images * SHARES <= MOST_BLOCKS
    if are_many:
        blocks += images * SHARES
    packing(
        blocks, stream, weight.address + 4 * first_tap, packed, scales, flags.address, x.address if are_many else known,
        steps(x)[0], size if are_many else 0, it.filters,
    )  # fmt: skip
    if size and not are_many:
        across = max(1, min(-(-size // (16 * pack.THREADS)), -(-1056 // images)))
        _greatest((across, images), stream, x.address, scales, steps(x)[0], size)
    if laid_already:
        laid = laid_already
    elif it.layout is not None:
        laying = laid_out.kernel(it.block.precision, it.block.arithmetic.lowest)
        laying(it.layout.blocks, stream, x.address, laid, flags.address, scales, it.layout)
    convolving(
        min(it.geometry.tiles, multiprocessors(device)), stream, x.address if it.layout is None else laid, packed,
        y.address + 4 * first_pixel, bias.address if bias is not None else 0, scales, flags.address, it.geometry,
        shared=it.shared,
    )  # fmt: skip
    return Launched(flags, laid if it.layout is not None else 0)


def are_served(x: DeviceArray, problems: tuple[Problem, ...], precision: str) -> bool:
    """Whether tensor cores compute these convolutions of x."""
    own = rung(x) if serves(x) else None
    if own is None:
        return False
    arithmetics = arithmetics_of(problems, precision, own)
    return all(explain(each, arithmetic, own) is None for each, arithmetic in zip(problems, arithmetics, strict=True))


def conv2d(
    x: DeviceArray, weight: DeviceArray, bias: DeviceArray | None, y: DeviceArray, window: Any, groups: int,
    precision: str, rectify: bool = False,
) -> bool:  # fmt: skip
    """Compute y, rectified if asked, if a fast kernel serves this convolution; whether one does."""
    problem = forward(x, weight, y, window, groups)
    bias = None if bias is None else in_one_piece(bias)
    if serves(x) and launch_direct.serves(problem):
        launch_direct.convolve(x, weight, bias, y, problem, rectify=rectify)
        return True
    own, device = rung(x), x.place.device
    if own is None or not are_served(x, (problem,), precision):
        return False
    (arithmetic,) = arithmetics_of((problem,), precision, own)
    it = plan(problem, arithmetic, multiprocessors(device), rectify, own)
    flags = launch(x, weight, bias, y, it).flags
    bias = weight.empty((0,)) if bias is None else bias
    output_again(
        min(it.pixel_tiles, multiprocessors(device)), x.place.stream, x, weight, bias, y, window.stride,
        window.padding, window.dilation, groups, flags, tiles_of(it), int(rectify),
    )  # fmt: skip
    return True


def conv2d_dx(dy: DeviceArray, weight: DeviceArray, dx: DeviceArray, window: Any, groups: int, precision: str) -> bool:
    """Compute dx if a fast kernel serves it, or all its phases; whether it does."""
    whole = forward(dx, weight, dy, window, groups)
    shape = input_gradient.shape_of(whole) if serves(dy) else None
    if shape is not None:
        input_gradient.launch(dy, weight, dx, whole, shape)
        return True
    phases = backward(dy, weight, dx, window, groups)
    if any(stride > 1 for stride in window.stride) and window.dilation != (1, 1):
        return False
    directly = [phase for phase in phases if launch_direct.serves(phase.problem)]
    others = [phase for phase in phases if phase not in directly]
    if not serves(dy) or not are_served(dy, tuple(phase.problem for phase in others), precision):
        return False
    if len(phases) < math.prod(window.stride):
        fill_with_zeros(dx)  # No tap reads some of the pixels.
    for phase in directly:
        launch_direct.convolve(dy, weight, None, dx, phase.problem, phase.first_pixel, phase.first_tap)
    _convolve_phases(dy, weight, dx, window, groups, precision, others)
    return True


def _convolve_phases(
    dy: DeviceArray, weight: DeviceArray, dx: DeviceArray, window: Any, groups: int, precision: str,
    phases: list[Phase],
) -> None:  # fmt: skip
    """Each on tensor cores; a layout that they share is made for the first."""
    own, blocks = rung(dy), multiprocessors(dy.place.device)
    assert own is not None
    plans = plans_of_phases(tuple(phase.problem for phase in phases), precision, blocks, own)
    shared: dict[Layout | None, Launched] = {}
    for phase, it in zip(phases, plans, strict=True):
        first = shared.get(it.layout)
        came = launch(dy, weight, None, dx, it, phase.first_pixel, phase.first_tap, first.laid if first else 0)
        first = shared.setdefault(it.layout, came) if it.layout is not None else came
        input_gradient_again(
            min(it.pixel_tiles, blocks), dy.place.stream, dy, weight, dx, window.stride, window.padding,
            window.dilation, groups, came.flags, first.flags, tiles_of(it, window.stride, phase.first),
        )  # fmt: skip

"""What the tensor cores' split cannot carry, computed again by the plain kernel: NaN, infinities, extreme magnitudes.

The fast kernel flags every tile of pixels, and `pack` every filter, in which such a value takes part. Flags stay in
device memory: nothing waits for the host, and where none is set a launch that finds nothing is all it costs.
"""

from typing import NamedTuple

from numba import cuda
from numba.cuda import types

from ..conv_elements import input_gradient_at, output_at
from ..host.driver import Kernel
from .plan import Plan


class Tiles(NamedTuple):
    """Where the flags' tiles lie, all int64: slot `(n*rows + i)*pitch + j` is row `i*step_h + first_h` of image n."""

    images: int
    rows: int
    pitch: int
    pixels: int
    tiles: int
    filters: int
    lines: int
    p: int
    q: int
    step_h: int
    step_w: int
    first_h: int
    first_w: int


@cuda.jit(device=True)
def _flagged(flags, g):
    """Whether any filter is flagged, told to all threads of the block."""
    any_line = 0
    for i in range(g.tiles + cuda.threadIdx.x, flags.size, cuda.blockDim.x):
        any_line |= flags[i]
    return cuda.syncthreads_or(any_line)


@cuda.jit(device=True)
def _wanted(i, tile, is_flagged, flags, g):
    """Image, filter, row and column of a tile's element i; image -1 if it need not be computed again."""
    k, slot = divmod(i, g.pixels)
    group, filter_ = divmod(k, g.filters)
    line, column = divmod(tile * g.pixels + slot, g.pitch)
    n, row = divmod(line, g.rows)
    wanted = is_flagged or flags[g.tiles + group * g.lines + filter_] != 0
    if not wanted or n >= g.images or row >= g.p or column >= g.q:
        n = -1
    return n, k, row * g.step_h + g.first_h, column * g.step_w + g.first_w


def _output_again(x, weight, bias, y, stride, padding, dilation, groups, flags, g, rectify):
    any_line = _flagged(flags, g)
    for tile in range(cuda.blockIdx.x, g.tiles, cuda.gridDim.x):
        if any_line != 0 or flags[tile] != 0:
            for i in range(cuda.threadIdx.x, weight.shape[0] * g.pixels, cuda.blockDim.x):
                n, k, p, q = _wanted(i, tile, flags[tile] != 0, flags, g)
                if n >= 0:
                    value = output_at(x, weight, bias, n, k, p, q, stride, padding, dilation, groups)
                    y[n, k, p, q] = types.float32(0) if rectify != 0 and value < 0 else value


def _input_gradient_again(dy, weight, dx, stride, padding, dilation, groups, flags, of_pixels, g):
    any_line = _flagged(flags, g)
    for tile in range(cuda.blockIdx.x, g.tiles, cuda.gridDim.x):
        if any_line != 0 or of_pixels[tile] != 0:
            for i in range(cuda.threadIdx.x, dx.shape[1] * g.pixels, cuda.blockDim.x):
                n, c, h, w = _wanted(i, tile, of_pixels[tile] != 0, flags, g)
                if n >= 0:
                    dx[n, c, h, w] = input_gradient_at(dy, weight, n, c, h, w, stride, padding, dilation, groups)


_TENSOR = types.Array(types.float32, 4, "A")
_PAIR = types.UniTuple(types.int64, 2)
_FLAGS = types.Array(types.int32, 1, "A")
_WINDOW = (_PAIR, types.UniTuple(_PAIR, 2), _PAIR, types.int64, _FLAGS)
_TILES = types.NamedUniTuple(types.int64, len(Tiles._fields), Tiles)
output_again = Kernel(
    "output_again", _output_again,
    types.void(_TENSOR, _TENSOR, types.Array(types.float32, 1, "A"), _TENSOR, *_WINDOW, _TILES, types.int64), 256,
)  # fmt: skip
input_gradient_again = Kernel(
    "input_gradient_again", _input_gradient_again,
    types.void(_TENSOR, _TENSOR, _TENSOR, *_WINDOW, _FLAGS, _TILES), 256,
)  # fmt: skip
"""Where phases share a layout, tiles of pixels are flagged for all of them in the first one's flags, `of_pixels`."""


def tiles_of(it: Plan, step: tuple[int, int] = (1, 1), first: tuple[int, int] = (0, 0)) -> Tiles:
    """A plan's tiles, and where their pixels lie."""
    g = it.geometry
    return Tiles(
        g.images, g.rows, g.pitch, it.block.pixels, it.pixel_tiles, g.filters, g.filter_blocks * it.block.filters,
        g.p, g.q, *step, *first,
    )  # fmt: skip

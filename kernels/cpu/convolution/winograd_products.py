"""Between points and pixels in Winograd convolution: weights to points, products of matrices, points to rows of y."""

from typing import NamedTuple

from kernelproof.kernels.winograd_matrices import TAPS

from ..launch import serial
from ..micro_kernels import TOGETHER, VECTORS
from ..vectors import LANES, call


class Routines(NamedTuple):
    """Addresses of the micro-kernels; those of a panel that is not full end in `_last`."""

    clear: int
    claim: int
    turn: int
    to_points: int
    weight_to_points: int
    turned_weight_to_points: int
    multiply: int
    multiply_last: int
    add: int
    add_last: int
    from_points: int
    pool: int
    turn_back: int


class Parts(NamedTuple):
    """Floats: of what all threads read; from a thread's points or weights on where its products stand, its copy, what
    it turns back and its flags, and of all these. Addresses of what products start from, and of where the channels of a
    tile stand; whether weights are turned around.
    """

    shared: int
    products: int
    copy: int
    out: int
    seen: int
    all: int
    zeros: int
    offsets: int
    turned: int


class Products(NamedTuple):
    """For each point tiles x channels by channels x filters, `chunk` channels and `pixels` tiles at a time.

    Filters are those of a group, in `panels`; `rows` and `columns` those of the convolution. In floats, a point of a
    chunk's weights takes `weights`, a point of a panel's products `products`. If it is pooled by twos, y holds the
    maxima and, `winners` bytes further, which of the four they were; on the way they stand behind `turned` floats.
    """

    filters: int
    rows: int
    columns: int
    panels: int
    pixels: int
    chunk: int
    weights: int
    products: int
    winners: int
    turned: int


@serial
def vectors_of(panel, its):
    """Vectors of filters in a panel."""
    return min(VECTORS, -(-its.filters // LANES) - panel * VECTORS)


@serial
def transform_weights(weight, turned, group, panel, vector, first, count, u, copy, of_x, its, routines):
    """`u[point][channel][filter]` of a vector of a panel's filters and `count` channels from `first` on.

    Weights are `[filter][channel][3][3]`, or `[channel][filter]` and turned around. Channels there are not are zero.
    """
    size, taps, vectors = 4 * LANES, TAPS * TAPS, vectors_of(panel, its)
    k = (panel * VECTORS + vector) * LANES
    filters, here = min(LANES, its.filters - k), min(count, of_x.channels - first)
    u, of_channel, done = u + vector * size, vectors * size, 0
    if turned:
        source = weight + 4 * taps * ((group * of_x.channels + first) * its.filters + k)
        call(routines.turned_weight_to_points, (
            source, 4 * taps * its.filters, filters, here, u, 4 * its.weights, of_channel
        ))  # fmt: skip
        done = here
    else:
        source = weight + 4 * taps * ((group * its.filters + k) * of_x.channels + first)
        call(routines.turn, (source, 4 * taps * of_x.channels, filters, here * taps, copy, size))
    call(routines.clear, (copy + (here - done) * taps * size, (count - here) * taps * LANES))
    call(routines.weight_to_points, (copy, count - done, u + done * of_channel, 4 * its.weights, of_channel))


@serial
def multiply_panel(u, v, m, panel, tiles, channels, adding, parts, of_x, its, routines):
    """`m[point][tile][filter] (+)= sum_channel v[tile][channel] * u[channel][filter]`, a chain for each, in order."""
    vectors, points = vectors_of(panel, its), (of_x.size + TAPS - 1) ** 2
    if vectors == VECTORS:
        routine = routines.add if adding else routines.multiply
    else:
        routine = routines.add_last if adding else routines.multiply_last
    of_tile = 4 * LANES * vectors
    for _ in range(points):
        # The last tiles may be fewer: what comes of the others is not used.
        for tile in range(0, tiles, TOGETHER * its.pixels):
            call(routine, (
                v + 4 * tile * of_x.block, 4 * of_x.capacity * of_x.block, -(-channels // of_x.block), parts.offsets,
                of_x.block, u, of_x.block * of_tile, parts.zeros, m + tile * of_tile, of_tile,
                min(TOGETHER, -(-(tiles - tile) // its.pixels)), 4 * its.pixels * of_x.block,
            ))  # fmt: skip
        u, v, m = u + 4 * its.weights, v + 4 * of_x.point, m + 4 * its.products


@serial
def transform_output(m, starts, y, panel, first, count, out, seen, of_x, its, routines):
    """Rows of y of a panel's filters and `count` units from `first` on, at addresses m, starts, y, out and seen."""
    size, vectors, last, step = 4 * LANES, vectors_of(panel, its), of_x.across - 1, 2 if its.winners else 1
    for vector in range(vectors):
        k = (panel * VECTORS + vector) * LANES
        for unit in range(count):
            segment, row = (first + unit) // of_x.down, (first + unit) % of_x.down
            image, segment = segment // of_x.segments, segment % of_x.segments
            p, q = row * of_x.size, segment * of_x.across * of_x.size
            rows, columns = min(of_x.size, its.rows - p), min(of_x.across * of_x.size, its.columns - q)
            filter_ = image * of_x.groups * its.filters + k
            if not its.winners:
                # What the sums are turned into comes near meanwhile.
                of_image, at = 4 * its.rows * its.columns, 4 * (p * its.columns + q)
                filters, lines = min(LANES, its.filters - k), 4 * (rows * its.columns) // 64
                call(routines.claim, (y + filter_ * of_image + at, of_image, filters, lines))
            # From the last tile to the first: what a tile has too many falls on the next row, whose tile comes later.
            call(routines.from_points, (
                m + (unit * of_x.across + last) * vectors * size + vector * size, 4 * its.products, of_x.across,
                -vectors * size, starts + 4 * k, out + last * of_x.size * size, columns * size, -of_x.size * size,
                seen + unit * size,
            ))  # fmt: skip
            if its.winners:
                maxima = out + 4 * its.turned
                places = maxima + (rows // 2) * (columns // 2) * size + LANES * size
                call(routines.pool, (out, size, columns * size, columns // 2, rows // 2, maxima, places))
                _turn_back(maxima, y, filter_, k, p // 2, q // 2, rows // 2, columns // 2, step, its, routines)
                _turn_back(
                    places, y + its.winners, filter_, k, p // 2, q // 2, rows // 2, columns // 2, step, its, routines
                )
            else:
                _turn_back(out, y, filter_, k, p, q, rows, columns, step, its, routines)


@serial
def _turn_back(out, y, filter_, k, p, q, rows, columns, step, its, routines):
    """`out[row][column][lane]` to `rows` x `columns` of y, at (p, q) of the images from `filter_` on."""
    width = its.columns // step
    of_image, filters = 4 * (its.rows // step) * width, min(LANES, its.filters - k)
    target = y + filter_ * of_image + 4 * (p * width + q)
    pieces, length = (1, rows * columns) if columns == width else (rows, columns)
    for piece in range(pieces):
        call(routines.turn_back, (
            out + piece * length * 4 * LANES, 4 * LANES, length, target + 4 * piece * width, of_image, filters,
        ))  # fmt: skip

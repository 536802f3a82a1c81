"""The two orders of Winograd convolution, in parallel: by tiles, where weights are few, and by panels of filters."""

import numpy as np

from kernelproof.kernels.winograd_matrices import TAPS

from ..launch import in_turn, serial
from ..micro_kernels import VECTORS
from ..vectors import LANES, take
from ..workers import on_workers
from .winograd_products import multiply_panel, transform_output, transform_weights, vectors_of
from .winograd_tiles import transform, transform_strip

TURNED = 32
"""Channels whose weights are transformed at a time."""


@serial
def _all_weights(worker, counter, weight, memory, work):
    """`u[group][panel][point][channel][filter]`: a vector of filters and some channels is a task."""
    of_x, its, parts, routines = work[0].x, work[0].its, work[0].parts, work[0].routines
    vectors, pieces, points = -(-its.filters // LANES), -(-its.chunk // TURNED), (of_x.size + TAPS - 1) ** 2
    copy = memory.ctypes.data + 4 * (parts.shared + worker * parts.all + parts.copy)
    task = take(counter)
    while task < of_x.groups * vectors * pieces:
        group, vector, first = task // pieces // vectors, task // pieces % vectors, task % pieces * TURNED
        panel, vector = vector // VECTORS, vector % VECTORS
        u = memory.ctypes.data + 4 * (group * its.panels + panel) * points * its.weights
        transform_weights(
            weight.ctypes.data, parts.turned, group, panel, vector, first, min(TURNED, its.chunk - first),
            u + 4 * first * vectors_of(panel, its) * LANES, copy, of_x, its, routines,
        )  # fmt: skip
        task = take(counter)


@in_turn
def by_tiles(workers, counter, last, x, weight, y, broken, memory, starts, work):
    """Some units of a group are a task; the weights of all panels are transformed before the first."""
    if counter[0] == 0:
        on_workers(workers, _all_weights, (counter, weight, memory, work))
        counter[0] = 0
    on_workers(workers, _tiles, (counter, last, x, y, broken, memory, starts, work))


@serial
def _tiles(worker, counter, last, x, y, broken, memory, starts, work):
    of_x, its, parts, routines = work[0].x, work[0].its, work[0].parts, work[0].routines
    batches, points = -(-of_x.units // of_x.together), (of_x.size + TAPS - 1) ** 2
    own = parts.shared + worker * parts.all
    v = memory.ctypes.data + 4 * own
    m, copy = v + 4 * parts.products, v + 4 * parts.copy
    task = take(counter)
    while task < last:
        group, first = task // batches, task % batches * of_x.together
        count = min(of_x.together, of_x.units - first)
        source = x.ctypes.data + 4 * group * of_x.channels * of_x.height * of_x.width
        transform(source, 0, first, count, v, copy, of_x, routines.clear, routines.turn, routines.to_points)
        for panel in range(its.panels):
            u = memory.ctypes.data + 4 * (group * its.panels + panel) * points * its.weights
            multiply_panel(
                u, v, m, panel, count * of_x.across, its.chunk, False, parts, of_x, its, routines
            )  # fmt: skip
            _write(memory, own, parts, starts, y, broken, group, panel, first, count, of_x, its, routines)
        task = take(counter)


@in_turn
def by_panels(first, last, workers, x, weight, y, broken, memory, starts, work):
    """Batches `first .. last - 1` of units: first all their points, then all panels' products with them."""
    of_x = work[0].x
    counter = np.empty(1, np.int64)
    for batch in range(first, last):
        begin = batch * of_x.together
        count = min(of_x.together, of_x.units - begin)
        counter[0] = 0
        on_workers(workers, _points, (counter, begin, count, x, memory, work))
        counter[0] = 0
        on_workers(workers, _panels, (counter, begin, count, weight, y, broken, memory, starts, work))


@serial
def _points(worker, counter, begin, count, x, memory, work):
    """`v[group][point][block][tile][channel]`: a strip of units of a group is a task."""
    of_x, parts, routines = work[0].x, work[0].parts, work[0].routines
    strips = -(-count // of_x.strip)
    copy = memory.ctypes.data + 4 * (parts.shared + worker * parts.all + parts.copy)
    task = take(counter)
    while task < strips * of_x.groups:
        group, unit = task // strips, task % strips * of_x.strip
        transform_strip(
            x.ctypes.data, memory.ctypes.data, copy, group, 0, begin, unit, min(of_x.strip, count - unit), of_x,
            routines.clear, routines.turn, routines.to_points,
        )  # fmt: skip
        task = take(counter)


@serial
def _panels(worker, counter, begin, count, weight, y, broken, memory, starts, work):
    """A panel of a group is a task: chunk by chunk of channels its weights to points, and their products added up."""
    of_x, its, parts, routines = work[0].x, work[0].its, work[0].parts, work[0].routines
    padded, points = -(-of_x.channels // of_x.block) * of_x.block, (of_x.size + TAPS - 1) ** 2
    own = parts.shared + worker * parts.all
    u = memory.ctypes.data + 4 * own
    m, copy = u + 4 * parts.products, u + 4 * parts.copy
    task = take(counter)
    while task < its.panels * of_x.groups:
        group, panel = task // its.panels, task % its.panels
        for chunk in range(0, padded, its.chunk):
            channels = min(its.chunk, padded - chunk)
            for vector in range(vectors_of(panel, its)):
                for c in range(0, channels, TURNED):
                    transform_weights(
                        weight.ctypes.data, parts.turned, group, panel, vector, chunk + c, min(TURNED, channels - c),
                        u + 4 * c * vectors_of(panel, its) * LANES, copy, of_x, its, routines,
                    )  # fmt: skip
            v = memory.ctypes.data + 4 * (group * points * of_x.point + chunk * of_x.capacity)
            multiply_panel(
                u, v, m, panel, count * of_x.across, channels, chunk > 0, parts, of_x, its, routines
            )  # fmt: skip
        _write(memory, own, parts, starts, y, broken, group, panel, begin, count, of_x, its, routines)
        task = take(counter)


@serial
def _write(memory, own, parts, starts, y, broken, group, panel, first, count, of_x, its, routines):
    """Rows of y of a panel and `count` units, and which images of them are broken."""
    out, seen = own + parts.out, own + parts.seen
    memory[seen : seen + count * LANES] = 0
    transform_output(
        memory.ctypes.data + 4 * (own + parts.products), starts[group].ctypes.data,
        y.ctypes.data + 4 * group * its.filters * y.shape[2] * y.shape[3], panel, first, count,
        memory.ctypes.data + 4 * out, memory.ctypes.data + 4 * seen, of_x, its, routines,
    )  # fmt: skip
    for flag in range(count * LANES):
        if memory[seen + flag] != 0:
            broken[(first + flag // LANES) // (of_x.down * of_x.segments)] = True

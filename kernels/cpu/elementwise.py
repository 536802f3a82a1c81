"""Operators on every element by itself, on vectors. Memory decides: a large result is stored past the caches.

Results of more than a task begin at a line of the cache, so no store straddles two.
"""

import functools
from typing import Any

import numpy as np

from .launch import in_turn, serial, share
from .row_vectors import AHEAD
from .vectors import Words, call, micro_kernel, take
from .workers import on_workers
from .workspace import empty, empty_beside

_CHUNK = 2**14
"""Elements in one task: far more work than starting it, and small enough to share between threads."""

_LARGE = 2**24
"""Bytes of results that are not looked for in the caches."""

_MEMORY = 32
"""Multiply-adds of a micro-kernel that take the time of reading and writing an element."""


def perform(routine: Any, inputs: tuple[Any, ...], results: int, *parameters: float) -> tuple[Any, ...]:
    """New arrays of the inputs' shape from `routine`, which takes addresses of inputs, parameters and results."""
    shape, size = inputs[0].shape, inputs[0].size
    past = int(4 * size * results >= _LARGE)
    # What goes past the caches has to begin at a line; for little it would take longer than it saves.
    make = empty if size > _CHUNK else functools.partial(np.empty, dtype=np.float32)
    made = tuple(empty_beside(shape, inputs) if past else make(shape) for _ in range(results))
    values = np.array(parameters, np.float32)
    addresses = np.array([_address(each.reshape(-1)) for each in (*inputs, values, *made)])
    share(_chunks, -(-size // _CHUNK), _MEMORY * _CHUNK, addresses, len(inputs), size, routine.address(past=past))
    return made


@in_turn
def _address(array):
    """A third of the time that numpy takes to tell."""
    return array.ctypes.data


@in_turn
def _chunks(workers, counter, last, addresses, inputs, size, routine):
    on_workers(workers, _chunks_worker, (counter, last, addresses, inputs, size, routine))


@serial
def _chunks_worker(_, counter, last, addresses, inputs, size, routine):
    own = np.empty_like(addresses)
    task = take(counter)
    while task < last:
        for number in range(len(own)):
            own[number] = addresses[number] + (number != inputs) * 4 * _CHUNK * task
        call(routine, (own.ctypes.data, min(_CHUNK, size - task * _CHUNK)))
        # What was stored past the caches is in order with this, which is atomic.
        task = take(counter)


def _each(words: Words, addresses: Any, count: Any, arrays: int, made: int, past: int, results: Any) -> None:
    """`results(*vectors of the inputs)` for every vector; inputs' addresses, one that is skipped, then the results'."""
    builder = words.builder
    whole, left = (each(count, words.number(words.lanes)) for each in (builder.sdiv, builder.srem))

    places = [words.load_integer(words.at(addresses, 8 * number)) for number in range(arrays + 1 + made)]

    def vectors(offset: Any, load: Any, store: Any) -> None:
        found = results(*(load(words.at(place, offset)) for place in places[:arrays]))
        for vector, place in zip(found, places[arrays + 1 :], strict=True):
            store(vector, words.at(place, offset))

    with words.loop(whole) as loop:
        offset = words.times(loop.index, words.size)
        # Where results are too large for the caches, what they are made of is asked for early.
        for place in places[:arrays] if past else ():
            words.prefetch(words.at(words.at(place, offset), AHEAD))
        vectors(offset, words.load, words.store_past if past else words.store)
    valid = words.first(left)
    vectors(
        words.times(whole, words.size),
        lambda address: words.load_where(valid, address),
        lambda vector, address: words.store_where(valid, vector, address),
    )


@micro_kernel
def relu(words: Words, addresses: Any, count: Any, *, past: int) -> None:
    """`y = 0 if x < 0 else x`: NaN and -0 stay."""
    zero = words.constant(0)

    def rectified(x: Any) -> tuple[Any, ...]:
        return (words.builder.select(words.builder.fcmp_ordered("<", x, zero), zero, x),)

    _each(words, addresses, count, 1, 1, past, rectified)


@micro_kernel
def relu_dx(words: Words, addresses: Any, count: Any, *, past: int) -> None:
    """`dx = 0 if x <= 0 else dy`."""
    zero = words.constant(0)

    def gated(dy: Any, x: Any) -> tuple[Any, ...]:
        return (words.builder.select(words.builder.fcmp_ordered("<=", x, zero), zero, dy),)

    _each(words, addresses, count, 2, 1, past, gated)


@micro_kernel
def sgd(words: Words, addresses: Any, count: Any, *, past: int) -> None:
    """`v' = momentum*v + gradient`, `parameter' = parameter - rate*v'`, each product and sum rounded once."""
    builder = words.builder
    rates = words.load_integer(words.at(addresses, 24))
    learning_rate, momentum = (words.splat(words.at(rates, 4 * number)) for number in (0, 1))

    def stepped(parameter: Any, gradient: Any, velocity: Any) -> tuple[Any, ...]:
        velocity = builder.fadd(builder.fmul(momentum, velocity), gradient)
        return builder.fsub(parameter, builder.fmul(learning_rate, velocity)), velocity

    _each(words, addresses, count, 3, 2, past, stepped)

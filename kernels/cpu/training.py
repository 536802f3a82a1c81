"""Cross-entropy, its gradient, and the parameter update on the CPU."""

import math
from typing import Any

import numpy as np
from numba import prange

from kernelproof import spec
from kernelproof.kernels.contract import implements
from kernelproof.spec.operator import Operator

from . import elementwise
from .launch import in_turn, launch, parallel, ready, serial, share
from .softmax import divide, exponentials
from .vectors import call, take
from .workers import on_workers

_CHUNK = 2**14
_ROWS = 8
"""Rows of logits in one task."""
_EXPONENTIAL = 32
"""What one exponential costs in multiply-adds, about."""


@implements(spec.cross_entropy, "cpu")
def cross_entropy(logits: Any, target: Any) -> Any:
    """Parallel over images; classes in rising order in the logits' type, then numpy's pairwise sum over the images.

    In float32 the classes are summed in lanes, as softmax.exponentials says, and the images in rising order in double
    precision, where they stand: numpy's sum and quotient of 64 took a fifth of the call.

    Any layout; one that is not row-major is copied first.
    """
    n, k = logits.shape
    loss, classes = np.empty(n, logits.dtype.newbyteorder("=")), _classes(spec.cross_entropy, logits, target)
    if loss.dtype == np.float32:
        routine, mean = exponentials.address(stored=0), np.empty((), np.float32)
        share(_row_losses, -(-n // _ROWS), _ROWS * k * _EXPONENTIAL, ready(logits), classes, loss, mean, routine)
        return mean
    launch(_cross_entropy, n, k * _EXPONENTIAL, ready(logits), classes, loss)
    return np.asarray(loss.sum() / n, loss.dtype)


@implements(spec.cross_entropy_dlogits, "cpu")
def cross_entropy_dlogits(logits: Any, target: Any) -> Any:
    """Parallel over images; classes in rising order, accumulated in the logits' type.

    In float32 the classes are summed in lanes, as softmax.exponentials says.

    Any layout; one that is not row-major is copied first.
    """
    n, k = logits.shape
    dlogits = np.empty((n, k), logits.dtype.newbyteorder("="))
    classes = _classes(spec.cross_entropy_dlogits, logits, target)
    if dlogits.dtype == np.float32:
        routines = np.array([exponentials.address(stored=1), divide.address()])
        share(_row_gradients, -(-n // _ROWS), _ROWS * k * _EXPONENTIAL, ready(logits), classes, dlogits, routines)
    else:
        launch(_cross_entropy_dlogits, n, k * _EXPONENTIAL, ready(logits), classes, dlogits)
    return dlogits


@implements(spec.sgd, "cpu")
def sgd(parameter: Any, gradient: Any, velocity: Any, learning_rate: Any, momentum: Any) -> Any:
    """Parallel over chunks of the flattened arrays; every product and sum rounded once, rates in the arrays' type.

    Any layout; one that is not row-major is copied first. The new arrays are fresh: nothing is updated in place.
    """
    dtype = parameter.dtype.newbyteorder("=")
    if dtype == np.float32:
        arrays = ready(parameter), ready(gradient), ready(velocity)
        return elementwise.perform(elementwise.sgd, arrays, 2, learning_rate, momentum)
    new_parameter, new_velocity = np.empty(parameter.shape, dtype), np.empty(parameter.shape, dtype)
    launch(
        _sgd, -(-parameter.size // _CHUNK), _CHUNK,
        ready(parameter).reshape(-1), ready(gradient).reshape(-1), ready(velocity).reshape(-1),
        dtype.type(learning_rate), dtype.type(momentum), new_parameter.reshape(-1), new_velocity.reshape(-1),
    )  # fmt: skip
    return new_parameter, new_velocity


def _classes(operator: Operator[...], logits: Any, target: Any) -> Any:
    """The class numbers, ready, once all are known to be classes: a call like an earlier one was not asked at the door.

    Raises what the operator's door raises.
    """
    classes = ready(target, np.int64)
    if not _are_classes(classes, logits.shape[1]):
        operator.door(logits, target)
    return classes


@in_turn
def _are_classes(target, classes):
    wrong = 0
    for n in range(len(target)):
        wrong += not 0 <= target[n] < classes
    return wrong == 0


@in_turn
def _row_losses(workers, counter, last, logits, target, loss, mean, routine):
    on_workers(workers, _row_losses_worker, (counter, last, logits, target, loss, routine))
    if last * _ROWS >= len(loss):
        total = 0.0
        for n in range(len(loss)):
            total += loss[n]
        mean[()] = total / len(loss)


@serial
def _row_losses_worker(_, counter, last, logits, target, loss, routine):
    classes = logits.shape[1]
    results = np.empty(2, np.float32)
    task = take(counter)
    while task < last:
        for n in range(task * _ROWS, min((task + 1) * _ROWS, len(loss))):
            call(routine, (logits.ctypes.data + 4 * classes * n, classes, 0, results.ctypes.data))
            loss[n] = np.log(results[1]) - (logits[n, target[n]] - results[0])
        task = take(counter)


@in_turn
def _row_gradients(workers, counter, last, logits, target, dlogits, routines):
    on_workers(workers, _row_gradients_worker, (counter, last, logits, target, dlogits, routines))


@serial
def _row_gradients_worker(_, counter, last, logits, target, dlogits, routines):
    classes = logits.shape[1]
    results, divisors = np.empty(2, np.float32), np.empty(2, np.float32)
    divisors[1] = len(logits)
    task = take(counter)
    while task < last:
        for n in range(task * _ROWS, min((task + 1) * _ROWS, len(logits))):
            at = dlogits.ctypes.data + 4 * classes * n
            call(routines[0], (logits.ctypes.data + 4 * classes * n, classes, at, results.ctypes.data))
            divisors[0] = results[1]
            own = (dlogits[n, target[n]] / divisors[0] - np.float32(1)) / divisors[1]
            call(routines[1], (at, classes, divisors.ctypes.data))
            dlogits[n, target[n]] = own
        task = take(counter)


@parallel
def _cross_entropy(first, last, logits, target, loss):
    for n in prange(first, last):
        loss[n] = _row_loss(logits[n], target[n])


@serial
def _row_loss(logits, target):
    greatest = _greatest(logits)
    total = math.exp(logits[0] - greatest)
    for k in range(1, len(logits)):
        total += math.exp(logits[k] - greatest)
    return math.log(total) - (logits[target] - greatest)


@parallel
def _cross_entropy_dlogits(first, last, logits, target, dlogits):
    for n in prange(first, last):
        _row_dlogits(logits[n], target[n], dlogits[n], len(logits))


@serial
def _row_dlogits(logits, target, dlogits, images):
    greatest = _greatest(logits)
    for k in range(len(logits)):
        dlogits[k] = math.exp(logits[k] - greatest)
    total = dlogits[0]
    for k in range(1, len(logits)):
        total += dlogits[k]
    for k in range(len(logits)):
        dlogits[k] = (dlogits[k] / total - (k == target)) / images


@serial
def _greatest(row):
    """Any NaN may be passed over: its own exponential brings it into every sum."""
    greatest = row[0]
    for k in range(1, len(row)):
        if row[k] > greatest:
            greatest = row[k]
    return greatest


@parallel
def _sgd(first, last, parameter, gradient, velocity, learning_rate, momentum, new_parameter, new_velocity):
    for task in prange(first, last):
        chunk = slice(task * _CHUNK, (task + 1) * _CHUNK)
        _sgd_chunk(
            parameter[chunk], gradient[chunk], velocity[chunk], learning_rate, momentum,
            new_parameter[chunk], new_velocity[chunk],
        )  # fmt: skip


@serial
def _sgd_chunk(parameter, gradient, velocity, learning_rate, momentum, new_parameter, new_velocity):
    for i in range(len(parameter)):
        new_velocity[i] = momentum * velocity[i] + gradient[i]
        new_parameter[i] = parameter[i] - learning_rate * new_velocity[i]

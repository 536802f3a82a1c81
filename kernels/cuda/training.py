"""The loss, its gradient, and the parameter update on a GPU."""

import math
from typing import Any

from numba import cuda

from kernelproof import spec
from kernelproof.kernels.contract import implements

from .host.arrays import DeviceArray
from .launch import THREADS, block_sum, launch


@implements(spec.cross_entropy, "cuda", array_type=DeviceArray)
def cross_entropy(logits: Any, target: Any) -> Any:
    """One thread per row, classes in rising order; one block adds the rows: every 256th in a thread, then a fixed tree.

    Accumulated in the arrays' type. Any strides, no copies. The check of `target` waits for it to be on the host.
    """
    losses, loss = logits.empty((logits.shape[0],)), logits.empty(())
    launch(_row_losses, losses.size, logits, target, losses)
    launch(_mean, THREADS, losses, loss)
    return loss


@implements(spec.cross_entropy_dlogits, "cuda", array_type=DeviceArray)
def cross_entropy_dlogits(logits: Any, target: Any) -> Any:
    """One thread per row, classes in rising order, accumulated in the arrays' type.

    Any strides, no copies. The check of `target` waits for it to be on the host.
    """
    dlogits = logits.empty(logits.shape)
    launch(_dlogits, dlogits.shape[0], logits, target, dlogits)
    return dlogits


@implements(spec.sgd, "cuda", array_type=DeviceArray)
def sgd(parameter: Any, gradient: Any, velocity: Any, learning_rate: Any, momentum: Any) -> Any:
    """One thread per element; both rates are rounded to the arrays' type first. Any shape and strides, no copies."""
    updated, new_velocity = parameter.empty(parameter.shape), velocity.empty(velocity.shape)
    rates = (parameter.dtype.type(learning_rate), parameter.dtype.type(momentum))
    launch(_sgd, updated.size, parameter, gradient, velocity, *rates, updated, new_velocity)
    return updated, new_velocity


@cuda.jit(device=True)
def _greatest_and_sum(logits, n):
    """`m = max_k logits[n,k]` and `sum_k exp(logits[n,k] - m)`."""
    greatest = logits[n, 0]
    for k in range(1, logits.shape[1]):
        if logits[n, k] > greatest:
            greatest = logits[n, k]
    total = logits.dtype.type(0)
    for k in range(logits.shape[1]):
        total += math.exp(logits[n, k] - greatest)
    return greatest, total


@cuda.jit
def _row_losses(logits, target, losses):
    for n in range(cuda.grid(1), losses.size, cuda.gridsize(1)):
        greatest, total = _greatest_and_sum(logits, n)
        losses[n] = math.log(total) - (logits[n, target[n]] - greatest)


@cuda.jit
def _mean(losses, loss):
    partial = cuda.shared.array(THREADS, loss.dtype)
    for i in range(cuda.blockIdx.x, loss.size, cuda.gridDim.x):
        total = loss.dtype.type(0)
        for n in range(cuda.threadIdx.x, losses.size, THREADS):
            total += losses[n]
        total = block_sum(total, partial)
        if cuda.threadIdx.x == 0:
            loss[i] = total / loss.dtype.type(losses.size)


@cuda.jit
def _dlogits(logits, target, dlogits):
    for n in range(cuda.grid(1), logits.shape[0], cuda.gridsize(1)):
        greatest, total = _greatest_and_sum(logits, n)
        for k in range(logits.shape[1]):
            softmax = math.exp(logits[n, k] - greatest) / total
            is_target = dlogits.dtype.type(1 if k == target[n] else 0)
            dlogits[n, k] = (softmax - is_target) / dlogits.dtype.type(logits.shape[0])


@cuda.jit
def _sgd(parameter, gradient, velocity, learning_rate, momentum, updated, new_velocity):
    for i in range(cuda.grid(1), updated.size, cuda.gridsize(1)):
        step = momentum * velocity.flat[i] + gradient.flat[i]
        new_velocity.flat[i] = step
        updated.flat[i] = parameter.flat[i] - learning_rate * step

"""The step of gradient descent with momentum for all parameters of a chain at once: one launch for up to eight.

In place, each element as `training._sgd` computes it; what is not float32 in one piece is left to that.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import cuda
from numba.cuda import types

from .. import ptx, training
from ..host.arrays import DeviceArray
from ..host.driver import Kernel
from ..launch import launch

THREADS, MOST = 256, 8
"""Of a block; parameters of a launch."""
_FOUR = types.UniTuple(types.int64, 4)
"""A parameter, its gradient, its velocity, its size."""


def _update(parameters, learning_rate, momentum):
    parameter, gradient, velocity, size = parameters[cuda.blockIdx.y]
    for i in range(cuda.grid(1), size, cuda.gridsize(1)):
        step = momentum * ptx.load_global(velocity + i * 4) + ptx.load_global(gradient + i * 4)
        ptx.store_global(velocity + i * 4, step)
        ptx.store_global(parameter + i * 4, ptx.load_global(parameter + i * 4) - learning_rate * step)


_UPDATE = Kernel(
    "update", _update, types.void(types.UniTuple(_FOUR, MOST), types.float32, types.float32), THREADS
)  # fmt: skip


def update(
    arrays: Sequence[tuple[DeviceArray, DeviceArray, DeviceArray]], learning_rate: float, momentum: float
) -> None:
    """Step all parameters by their gradients, in place, and their velocities."""
    together = []
    for parameter, gradient, velocity in arrays:
        three = (parameter, gradient, velocity)
        if all(each.dtype == np.float32 and each.is_contiguous() for each in three):
            together.append(three)
        else:
            rates = (parameter.dtype.type(rate) for rate in (learning_rate, momentum))
            launch(training._sgd, parameter.size, *three, *rates, parameter, velocity)
    for first in range(0, len(together), MOST):
        some = together[first : first + MOST]
        most: Any = max(each.size for each, *_ in some)
        numbers = [(*(each.address for each in three), three[0].size) for three in some]
        numbers += [(0, 0, 0, 0)] * (MOST - len(some))
        _UPDATE(
            (max(1, min(-(-most // THREADS), 1024)), len(some)), some[0][0].place.stream, tuple(numbers), learning_rate,
            momentum,
        )  # fmt: skip

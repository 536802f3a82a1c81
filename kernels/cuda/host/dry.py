"""What a call would launch, and how much memory it would take, found without a GPU: it is run dry, on no memory at all.

The entries themselves run, with all that they look at and choose by, so nothing is told but what would be done.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernelproof.spec.errors import ParameterError, UnsupportedError
from kernelproof.spec.operator import Operator

from . import allowance
from .arrays import SIMULATED, DeviceArray, Place
from .tape import Launch, Tape, recorded_on, running

if not SIMULATED:
    from .driver import THOUGHT_OF


class _Phantom:
    """An array's shape, strides and address, without its memory."""

    def __init__(self, view: np.ndarray, start: int) -> None:
        self._view, self.shape, self.strides = view, view.shape, view.strides
        self.__cuda_array_interface__ = {"data": (start, False)}

    @classmethod
    def of(cls, shape: Sequence[int], dtype: np.dtype, start: int) -> "_Phantom":
        steps = itertools.accumulate(reversed((*shape[1:], dtype.itemsize)), lambda step, size: step * size)
        strides = tuple(reversed(list(steps)))[-len(shape) :] if shape else ()
        return cls(np.lib.stride_tricks.as_strided(np.empty(1, dtype), tuple(shape), strides), start)

    def __getitem__(self, index: slice) -> "_Phantom":
        return _Phantom(self._view[index], self.__cuda_array_interface__["data"][0])


class _Nowhere(Place):
    """A GPU that is only thought of; what is taken there lies one behind the other, and is not there."""

    def empty(self, shape: Sequence[int], dtype: Any) -> DeviceArray:
        dtype, tape = np.dtype(dtype), running()
        assert tape is not None
        size = math.prod(shape) * dtype.itemsize
        allowance.count(size)
        start = max((each.start + each.size for each in tape.taken), default=0) // 512 * 512 + 512
        return DeviceArray(_Phantom.of(shape, dtype, start), dtype, self, tape.take(start, size))


@dataclass(frozen=True)
class Dry:
    """The kernels in the order of their launches, and the bytes taken beside arguments and results."""

    launches: tuple[Launch, ...]
    workspace: int


def dry(
    operator: Operator[...], kernel: Callable[..., Any], shapes: Sequence[tuple[int, ...]], dtype: Any, *args: Any,
    gpu: str = "H200", **kwargs: Any,
) -> Dry:  # fmt: skip
    """What `kernel` would do for the operator on row-major arrays of these shapes, on a GPU of this name.

    Raises ParameterError for another GPU, UnsupportedError in the simulator, and what operator and kernel raise.
    """
    if SIMULATED:
        raise UnsupportedError(
            operator.__name__, "the simulator", "CUDA itself, with no GPU", "Unset NUMBA_ENABLE_CUDASIM."
        )
    if gpu not in THOUGHT_OF:
        raise ParameterError(operator.__name__, f"gpu={gpu!r}", " or ".join(THOUGHT_OF), "Name one of them.")
    tape = Tape(is_dry=True)
    with recorded_on(tape):
        place = _Nowhere("numba", -1 - list(THOUGHT_OF).index(gpu), 0)
        arrays = [place.empty(shape, dtype) for shape in shapes]
        result = operator.perform(kernel, *arrays, *args, **kwargs)
    outside = sum(each.nbytes for each in (*arrays, result))
    return Dry(tuple(tape.launches), sum(each.size for each in tape.taken) - outside)

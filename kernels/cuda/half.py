"""Arrays of half precision, float16 and bfloat16: widened exactly, computed with in float32, results rounded once.

Rounded to the nearest, ties to even; what is too large for float16 becomes infinite, what is too small, subnormal or 0.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numba import cuda

from kernelproof.spec.errors import DtypeError, UnsupportedError
from kernelproof.spec.operator import Operator

from .host.arrays import SIMULATED, DeviceArray
from .launch import launch

if not SIMULATED:
    from .ptx import float_of, instruction

    widen_float16 = instruction("{ .reg .b16 h; cvt.u16.u32 h, $1; cvt.f32.f16 $0, h; }", "f", "r", pure=True)
    narrow_float16 = instruction("{ .reg .b16 h; cvt.rn.f16.f32 h, $1; cvt.u32.u16 $0, h; }", "r", "f", pure=True)
    # bfloat16 is the upper half of a float32. The instruction is Ampere's.
    narrow_bfloat16 = instruction("{ .reg .b16 h; cvt.rn.bf16.f32 h, $1; cvt.u32.u16 $0, h; }", "r", "f", pure=True)


@cuda.jit
def _from_float16(x, y):
    for i in range(cuda.grid(1), y.size, cuda.gridsize(1)):
        y.flat[i] = widen_float16(np.int32(x.flat[i]))


@cuda.jit
def _from_bfloat16(x, y):
    for i in range(cuda.grid(1), y.size, cuda.gridsize(1)):
        y.flat[i] = float_of(np.int32(x.flat[i]) << 16)


@cuda.jit
def _to_float16(x, y):
    for i in range(cuda.grid(1), y.size, cuda.gridsize(1)):
        y.flat[i] = narrow_float16(x.flat[i])


@cuda.jit
def _to_bfloat16(x, y):
    for i in range(cuda.grid(1), y.size, cuda.gridsize(1)):
        y.flat[i] = narrow_bfloat16(x.flat[i])


_WIDENING = {"float16": _from_float16, "bfloat16": _from_bfloat16}
_NARROWING = {"float16": _to_float16, "bfloat16": _to_bfloat16}


def half_of(operator: str, arrays: Iterable[Any]) -> str | None:
    """The half precision that all of these arrays have, None if none has one; raises DtypeError, UnsupportedError."""
    scalars = {each.scalar for each in arrays if isinstance(each, DeviceArray) and each.dtype.kind == "f"}
    halves = scalars & set(_WIDENING)
    if not halves:
        return None
    if len(scalars) > 1:
        raise DtypeError(
            operator, f"arrays of {' and '.join(sorted(scalars))}", "one scalar type for all",
            "Convert first: nothing is promoted.",
        )  # fmt: skip
    if SIMULATED:
        raise UnsupportedError(operator, "half precision in the simulator", "a GPU", "Convert to float32.")
    return halves.pop()


def widened(array: Any) -> Any:
    """A float32 array of the same values; what is no array of half precision, as it is."""
    if not isinstance(array, DeviceArray) or array.scalar not in _WIDENING:
        return array
    wide = array.empty(array.shape, np.float32)
    launch(_WIDENING[array.scalar], wide.size, _bits(array), wide)
    return wide


def narrowed(array: Any, scalar: str) -> Any:
    """A float32 array rounded to the scalar type; what is none, such as indices, as it is."""
    if not isinstance(array, DeviceArray) or array.dtype != np.float32:
        return array
    narrow = array.empty(array.shape, scalar)
    launch(_NARROWING[scalar], narrow.size, array, _bits(narrow))
    return narrow


def _bits(array: DeviceArray) -> DeviceArray:
    return DeviceArray(array.owner, np.dtype(np.uint16), array.place, array.memory)


def performed(operator: Operator[...], kernel: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Perform the operator on device arrays; those of half precision are widened behind the door."""
    scalar = half_of(operator.__name__, (*args, *kwargs.values()))
    if scalar is None:
        return operator.perform(kernel, *args, **kwargs)

    def body(*values: Any) -> Any:
        result = kernel(*map(widened, values))
        if isinstance(result, tuple):
            return tuple(narrowed(each, scalar) for each in result)
        return narrowed(result, scalar)

    return operator.perform(body, *args, **kwargs)

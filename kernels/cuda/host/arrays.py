"""Arrays in device memory: the caller's own, without a copy, on the caller's device and stream.

A call takes the memory, device and current stream of its first device array; results come from that library's own
allocator, so they are torch tensors for torch tensors, cupy arrays for cupy arrays, numba device arrays for all others.
If all arrays are numpy's, they are copied to the GPU and the results back.
"""

import contextlib
import functools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numba import config, cuda

from kernelproof.kernels.dispatch import is_device_array
from kernelproof.spec.errors import DtypeError, UnsupportedError
from kernelproof.spec.operator import Operator

from . import allowance, tape
from .tape import Memory

SIMULATED = bool(config.ENABLE_CUDASIM)
"""Whether numba's simulator stands in for the GPU."""


@dataclass(frozen=True)
class Place:
    """Where one call runs: a GPU's number, a stream's handle, and whose arrays it returns: torch, cupy or numba."""

    library: str
    device: int
    stream: int

    def empty(self, shape: Sequence[int], dtype: Any) -> "DeviceArray":
        """A new row-major array that holds anything; the kernel writes all of it."""
        is_bfloat16 = isinstance(dtype, str) and dtype == "bfloat16"
        dtype = np.dtype("float16" if is_bfloat16 else dtype)
        size = math.prod(shape) * dtype.itemsize
        allowance.count(size)
        if self.library == "torch":
            torch = sys.modules["torch"]
            name = "bfloat16" if is_bfloat16 else dtype.name
            new = torch.empty(tuple(shape), dtype=getattr(torch, name), device=f"cuda:{self.device}")
        elif self.library == "cupy":
            new = sys.modules["cupy"].empty(tuple(shape), dtype)
        else:
            new = cuda.device_array(tuple(shape), dtype, stream=numba_stream(self.stream))
        running = tape.running()
        memory = None if running is None else running.take(address_of(new), size)
        return DeviceArray(new, dtype, self, memory, is_bfloat16, is_own=True)


@dataclass(frozen=True)
class DeviceArray:
    """A caller's array as doors and kernels see it: a shape, numpy's dtype, and the place of the call.

    numpy has no bfloat16, so such an array has the dtype of the other half precision, and is marked.
    """

    owner: Any
    dtype: np.dtype
    place: Place
    memory: Memory | None = None  # Known while a tape runs.
    is_bfloat16: bool = False
    is_own: bool = False  # Taken within the call: nobody else has it.
    greatest: "DeviceArray | None" = None  # Of each image, if what wrote it told: cuda_cores/greatest.py.

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.owner.shape)

    @property
    def ndim(self) -> int:
        return len(self.owner.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def scalar(self) -> str:
        """The name of its scalar type."""
        return "bfloat16" if self.is_bfloat16 else self.dtype.name

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def address(self) -> int:
        """Of the first element, in device memory."""
        running, value = tape.running(), address_of(self.owner)
        return value if running is None or not self.size else running.address(value, self.memory)

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes from one entry of an axis to the next."""
        if library_of(self.owner) == "torch":
            return tuple(each * self.dtype.itemsize for each in self.owner.stride())
        return tuple(self.owner.strides)

    def is_contiguous(self) -> bool:
        """Whether the elements lie in one piece, in row-major order."""
        expected = self.dtype.itemsize
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size > 1 and stride != expected:
                return False
            expected *= size
        return True

    def as_images(self) -> "DeviceArray | None":
        """Rows as images of one pixel, without a copy; None where the library has no such view."""
        if library_of(self.owner) != "numba":
            return self._like(self.owner[:, :, None, None])
        return self._like(self.owner.reshape(*self.shape, 1, 1)) if self.is_contiguous() and self.size else None

    def reshaped(self, shape: tuple[int, ...]) -> "DeviceArray":
        """The same memory, in which the elements lie in one piece, with another shape of as many elements."""
        return self._like(self.owner.reshape(shape))

    def __getitem__(self, index: Literal[0] | None) -> "DeviceArray":
        """The two steps that doors take: `array[None]` puts an axis of one in front, `array[0]` takes it away."""
        if index is None and library_of(self.owner) == "numba" and not SIMULATED:
            # numba's device arrays do not index with None.
            interface = dict(self.owner.__cuda_array_interface__)
            if interface["strides"] is not None:
                interface["strides"] = (interface["strides"][0] * self.shape[0], *interface["strides"])
            interface["shape"] = (1, *self.shape)
            return self._like(cuda.from_cuda_array_interface(interface, owner=self.owner, sync=False))
        return self._like(self.owner[index])

    def _like(self, owner: Any) -> "DeviceArray":
        return DeviceArray(owner, self.dtype, self.place, self.memory, self.is_bfloat16, self.is_own)

    def empty(self, shape: Sequence[int], dtype: Any = None) -> "DeviceArray":
        """A new array beside this one, of its scalar type unless another is asked for."""
        return self.place.empty(shape, self.dtype if dtype is None else dtype)

    def view(self) -> Any:
        """This memory as numba launches on it; a scalar as one entry."""
        array = at_least_1d(self)
        return array.owner if library_of(array.owner) == "numba" else cuda.as_cuda_array(array.owner, sync=False)

    def copy_to_host(self) -> np.ndarray:
        """The values as a numpy array, once everything before on this stream is done."""
        if library_of(self.owner) == "torch":
            return self.owner.cpu().numpy()
        if library_of(self.owner) == "cupy":
            return self.owner.get()
        if self.size == 0 or SIMULATED or self.owner.is_c_contiguous():
            return self.owner.copy_to_host()
        from ..relu import copied  # numba's own copy refuses some strides.

        return copied(self).copy_to_host()


def taken(tensor: Any) -> DeviceArray:
    """A caller's array as doors and kernels see it, at the place where it is now."""
    return take("kernelproof", tensor, place_of(tensor))


def image_of(array: DeviceArray) -> tuple[int, int]:
    """Height and width of an array of images."""
    _, _, height, width = array.shape
    return height, width


def steps(array: DeviceArray) -> tuple[int, int, int, int]:
    """The strides of an array of images, or of filters, in elements."""
    n, c, h, w = (each // array.dtype.itemsize for each in array.strides)
    return n, c, h, w


def at_least_1d(array: DeviceArray) -> DeviceArray:
    """The array, or a scalar as one entry."""
    return array if array.shape else array[None]


def address_of(owner: Any) -> int:
    """Of an array's first element, whoever's array it is."""
    if library_of(owner) == "torch":
        return owner.data_ptr()
    return owner.__cuda_array_interface__["data"][0]


def library_of(array: Any) -> str:
    """Whose array it is: "torch", "cupy", or "numba", which reads all others by their interface."""
    for library, kind in (("torch", "Tensor"), ("cupy", "ndarray")):
        if library in sys.modules and isinstance(array, getattr(sys.modules[library], kind)):
            return library
    return "numba"


def numba_stream(handle: int) -> Any:
    """numba's stream for a handle of the CUDA driver; 0 is the default stream."""
    return cuda.external_stream(handle) if handle else 0


def on_device(
    operator: Operator[...], kernel: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call `kernel` through the operator's door as `run` calls functions."""
    from ..half import performed  # It launches, and so stands on this module.

    return run(operator.__name__, functools.partial(performed, operator, kernel), args, kwargs)


def run(name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call `function` with arrays on the GPU, results, if there are any, as the caller's kind of array.

    Raises UnsupportedError without a GPU or the simulator, for arrays on several GPUs, for tensors that require grad.
    """
    if not cuda.is_available():
        raise UnsupportedError(
            name,
            "no GPU that numba can use",
            "an NVIDIA GPU with its driver and CUDA's compiler libraries, or numba's simulator",
            "Install the driver and pip install 'numba-cuda[cu12]' or [cu13]; or set NUMBA_ENABLE_CUDASIM=1.",
        )
    arguments = [*args, *kwargs.values()]
    if any(isinstance(each, DeviceArray) for each in arguments):
        return function(*args, **kwargs)  # Within a larger call, which has taken its arrays already.
    on_gpu = [each for each in arguments if is_device_array(each)]
    with at(name, on_gpu) as place:
        values = [take(name, each, place) for each in arguments]
        result = function(*values[: len(args)], **dict(zip(kwargs, values[len(args) :], strict=True)))
        if result is None:
            return None
        results = result if isinstance(result, tuple) else (result,)
        given = tuple(each.owner if on_gpu else each.copy_to_host() for each in results)
    return given if isinstance(result, tuple) else given[0]


@contextlib.contextmanager
def at(operator: str, arrays: list[Any]) -> Iterator[Place]:
    """The place of a call on these arrays, its GPU made current and its stream ordered with the arrays' streams."""
    places = [place_of(each) for each in arrays] or [Place("numba", _current_device(), 0)]
    if len({place.device for place in places}) > 1:
        devices = ", ".join(str(place.device) for place in places)
        raise UnsupportedError(operator, f"arrays on GPUs {devices}", "all on one GPU", "Move them first.")
    here, others = places[0], {place.stream for place in places} - {places[0].stream}
    with contextlib.nullcontext() if here.device == _current_device() else cuda.gpus[here.device]:
        for stream in others:  # What fills the other arrays has to be done before the kernel reads them,
            _wait(here.stream, stream)
        try:
            yield here
        finally:  # and what was launched has to be done, also by a call that failed, before their memory is used again.
            for stream in others:
                _wait(stream, here.stream)


def place_of(array: Any) -> Place:
    library = library_of(array)
    if library == "torch":
        stream = sys.modules["torch"].cuda.current_stream(array.device).cuda_stream
        return Place(library, array.device.index, stream)
    if library == "cupy":
        return Place(library, array.device.id, sys.modules["cupy"].cuda.get_current_stream().ptr)
    if hasattr(array, "__cuda_ndarray__"):
        stream = 0 if SIMULATED else array.__cuda_array_interface__["stream"]
    else:
        stream = array.__cuda_array_interface__.get("stream")
    # 1 is CUDA's other name for the default stream. Arrays of unknown origin are taken to lie on the current GPU.
    return Place(library, _current_device(), 0 if stream in (None, 1) else int(stream))


def _current_device() -> int:
    return 0 if SIMULATED else cuda.get_current_device().id


def _wait(waiting: int, awaited: int) -> None:
    event = cuda.event(timing=False)
    event.record(numba_stream(awaited))
    event.wait(numba_stream(waiting))


def in_rising_order(array: np.ndarray) -> np.ndarray:
    """The array in one piece and in this machine's byte order, a copy only where it is not.

    An axis of one may have any stride, of which numba takes a negative one for an axis of none.
    """
    native = np.require(array, array.dtype.newbyteorder("="), "C")
    return native.copy() if min(native.strides, default=0) < 0 else native


def take(operator: str, argument: Any, place: Place) -> Any:
    if isinstance(argument, np.ndarray):
        argument = cuda.to_device(in_rising_order(argument), stream=numba_stream(place.stream))
    elif not is_device_array(argument):
        return argument
    if library_of(argument) == "torch":
        argument = argument.resolve_neg()  # Its memory may hold the numbers with the other sign.
        dtype = _tensor_dtype(operator, argument)
        return DeviceArray(argument, dtype, place, is_bfloat16=str(argument.dtype) == "torch.bfloat16")
    if library_of(argument) == "numba" and not hasattr(argument, "__cuda_ndarray__"):
        argument = cuda.as_cuda_array(argument, sync=False)
    return DeviceArray(argument, np.dtype(argument.dtype), place)


def _tensor_dtype(operator: str, tensor: Any) -> np.dtype:
    if tensor.requires_grad:
        raise UnsupportedError(
            operator,
            "a tensor that requires grad",
            "tensors without: autograd cannot see this call",
            "Pass x.detach().",
        )
    try:
        return np.dtype(str(tensor.dtype).removeprefix("torch.").replace("bfloat16", "float16"))
    except TypeError:
        raise DtypeError(
            operator, f"a tensor of {tensor.dtype}", "float32, float64, float16 or bfloat16", "Convert with .float()."
        ) from None

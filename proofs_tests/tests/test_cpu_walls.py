"""The CPU kernels on arrays that end, or begin, at memory that nobody may touch: a read beside them is a signal.

The fences of the laws see what is written there, and what is read if it comes to count. A vector that reaches beyond
an array in lanes that nobody looks at goes unseen, until the array is the last of its page.
"""

import ctypes
import itertools
import mmap
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernelproof import spec
from kernelproof.spec import Window

PAGE = mmap.PAGESIZE


def walled(array: np.ndarray, behind: bool) -> np.ndarray:
    """The same values, right before a page that may not be touched, or right behind one."""
    pages = -(-array.nbytes // PAGE)
    block = mmap.mmap(-1, (pages + 2) * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(block))
    for page in (0, pages + 1):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + page * PAGE), PAGE, 0) == 0
    first = PAGE + (pages * PAGE - array.nbytes if behind else 0)
    there = np.frombuffer(block, array.dtype, array.size, first).reshape(array.shape)
    there[...] = array
    return there


def whole(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).integers(-8, 9, shape).astype(np.float32)


Call = tuple[str, tuple[Any, ...], dict[str, Any]]
"""An operator's name, its arrays and shapes, its options."""


def pooling() -> Iterator[Call]:
    geometries = [(2, 2, 0), (3, 2, 1), (3, 2, 0), (3, 1, 1), ((3, 2), (1, 2), (1, 0)), ((1, 5), (1, 2), 0)]
    # Between images, too, whole vectors are read where they stay in the array: in a few small ones they would not.
    small = itertools.product((3, 4, 9), (1, 2, 7), (1, 2, 3))
    for width, height, images in (*itertools.product((13, 16, 17, 32, 33, 36, 66), (7, 8), (1, 9)), *small):
        x = whole(images, 3, height, width)
        for kernel, stride, padding in geometries:
            room = np.array([height, width]) + 2 * np.array(padding)
            if (np.array(kernel) > room).any():
                continue
            options = {"kernel_size": kernel, "stride": stride, "padding": padding}
            yield "max_pool2d", (x,), options
            yield "max_pool2d", (x,), options | {"return_indices": True}
            yield "max_pool2d.dx", (spec.max_pool2d(x, **options), x), options


def convolution() -> Iterator[Call]:
    windows = [
        Window((3, 3), (1, 1), ((1, 1), (1, 1))),
        Window((3, 3), (2, 2), ((1, 1), (1, 1))),
        Window((3, 2), (2, 2), ((0, 3), (2, 0))),
        Window((5, 5), (1, 1), ((2, 2), (2, 2))),
        Window((2, 3), (1, 2), ((1, 0), (0, 2)), (2, 1)),
        Window((1, 1)),
    ]
    for window, width, (channels, filters, groups) in itertools.product(
        windows, (16, 33), ((1, 2, 1), (3, 19, 1), (9, 9, 9), (34, 18, 2), (16, 16, 1))
    ):
        x, weight = whole(2, channels, 9, width), whole(filters, channels // groups, *window.kernel)
        dy = whole(2, filters, window.p(x.shape), window.q(x.shape))
        yield "conv2d", (x, weight, whole(filters)), {"window": window, "groups": groups}
        yield "conv2d.dx", (dy, weight, x.shape), {"window": window, "groups": groups}
        yield "conv2d.dweight", (dy, x, weight.shape), {"window": window, "groups": groups}


def linear() -> Iterator[Call]:
    for n, c, k in itertools.product((1, 5, 14, 29), (1, 15, 16, 33, 130), (1, 9, 16, 17, 71)):
        x, weight, dy = whole(n, c), whole(k, c), whole(n, k)
        yield "linear", (x, weight, whole(k)), {}
        yield "linear.dx", (dy, weight), {}
        yield "linear.dweight", (dy, x), {}
        yield "linear.dbias", (dy,), {}


def elements() -> Iterator[Call]:
    for size in (1, 15, 16, 17, 33, 2**14 - 1, 2**14 + 17):
        yield "relu", (whole(size),), {}
        yield "relu.dx", (whole(size), whole(size)), {}
        yield "sgd", (whole(size), whole(size), whole(size)), {"learning_rate": 0.5, "momentum": 0.25}
    for rows, classes in itertools.product((1, 9), (1, 15, 16, 17, 33)):
        target = np.arange(rows) % classes
        yield "cross_entropy", (whole(rows, classes), target), {}
        yield "cross_entropy.dlogits", (whole(rows, classes), target), {}


# Shifted rows index arrays, which test_bounds.py checks.
ALGORITHMS = "direct", "depthwise", "pixel vectors", "pointwise", "winograd"
CALLS = {"pooling": pooling, "linear": linear, "elements": elements, **dict.fromkeys(ALGORITHMS, convolution)}


def perform(algorithm: str, name: str, arrays: tuple[Any, ...], options: dict[str, Any]) -> Iterator[bytes]:
    """The bits of the result; of a convolution, by the algorithms so called that can do it."""
    from kernelproof import kernels
    from kernelproof.kernels.cpu.convolution import planner

    operator = spec.find(name)
    if "window" not in options:
        results = kernels.backend("cpu")(operator, *arrays, **options)
        yield b"".join(each.tobytes() for each in (results if isinstance(results, tuple) else (results,)))
        return
    shapes = [each.shape if isinstance(each, np.ndarray) else each for each in arrays]
    x_shape, weight_shape = {
        "conv2d": (shapes[0], shapes[1]), "conv2d.dx": (shapes[2], shapes[1]), "conv2d.dweight": (shapes[1], shapes[2])
    }[name]  # fmt: skip
    asked = planner.Problem(
        name.replace(".", "_"), x_shape, weight_shape, options["window"], options["groups"], "float32"
    )
    for row in planner.ALGORITHMS:
        is_meant = row.operator == asked.operator and row.name.startswith(algorithm)
        if is_meant and all(need.holds(asked) for need in row.needs):
            yield row.run(*arrays, options["window"], options["groups"]).tobytes()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mprotect"), reason="no pages to protect")
@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_read_beside_an_array(name: str) -> None:
    came = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=False)
    assert came.returncode == 0, came.stdout[-400:] + came.stderr[-2000:]


def test_a_read_beside_an_array_is_a_signal() -> None:
    for behind, index in ((True, 5), (False, -1)):
        source = f"from {__name__.split('.')[-1]} import *; x = walled(np.ones(5, np.float32), {behind})"
        read = f"ctypes.c_float.from_address(x.ctypes.data + 4 * {index}).value"
        for ends, code in (("", 0), (f"; {read}", -11)):
            came = subprocess.run([sys.executable, "-c", source + ends], cwd=Path(__file__).parent, check=False)
            assert came.returncode == code


def main(name: str) -> None:
    for operator, arrays, options in CALLS[name]():
        print(operator, [getattr(each, "shape", each) for each in arrays], options, flush=True)
        plain = list(perform(name, operator, arrays, options))
        for behind in (True, False):
            there = tuple(walled(each, behind) if isinstance(each, np.ndarray) else each for each in arrays)
            assert list(perform(name, operator, there, options)) == plain, behind


if __name__ == "__main__":
    main(sys.argv[1])

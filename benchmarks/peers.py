"""Everybody who is compared with: the same problem on the same values, as each would do it fastest.

A peer is a function from a problem, its arrays and a number of threads to a call without arguments; None if it has no
such operator. Conversions, sessions and compilations are done before; the call computes and allocates its result.
"""

import functools
import importlib.util
import os
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, TypeAlias

import numpy as np

from kernelproof.proofs import Problem

Arrays: TypeAlias = Mapping[str, np.ndarray]
Call: TypeAlias = Callable[[], Any]
Peer: TypeAlias = Callable[[Problem, Arrays, int], Call | None]

ANOTHER = 1e-3
"""How far a peer may be from ours, over the greatest element: more is another operator, and no comparison."""


def _named(given: Mapping[str, Any]) -> tuple[Any, Any, Any, Any]:
    """x, weight, dy and bias; None for what the problem has not."""
    return given.get("x"), given.get("weight"), given.get("dy"), given.get("bias")


def torch_contiguous(problem: Problem, arrays: Arrays, threads: int) -> Call | None:
    """PyTorch as its tensors lie by default, NCHW."""
    return _torch(problem, arrays, threads, channels_last=False)


def torch_channels_last(problem: Problem, arrays: Arrays, threads: int) -> Call | None:
    """PyTorch with all images and filters channels-last, converted beforehand."""
    if problem.op.name not in ("conv2d", "max_pool2d"):
        return None
    return _torch(problem, arrays, threads, channels_last=True)


def _torch(problem: Problem, arrays: Arrays, threads: int, channels_last: bool) -> Call | None:
    import torch  # pyright: ignore[reportMissingImports]

    def tensor(array: np.ndarray) -> Any:
        copy = torch.from_numpy(array.copy())
        return copy.to(memory_format=torch.channels_last) if channels_last and array.ndim == 4 else copy

    torch.set_num_threads(threads)
    given, aten = {name: tensor(each) for name, each in arrays.items()}, torch.ops.aten
    x, weight, dy, bias = _named(given)
    options = problem.options

    def of_convolution(which: int) -> Call:
        ((top, _), (left, _)) = options["padding"]
        geometry = *map(list, (options["stride"], (top, left), options["dilation"])), False, [0, 0], options["groups"]
        if which == 0:
            return lambda: aten.convolution(x, weight, bias, *geometry)
        of_x = torch.empty(problem.shapes["x"]) if x is None else x
        of_weight = torch.empty(problem.shapes["weight"]) if weight is None else weight
        if channels_last:
            of_x, of_weight = (each.to(memory_format=torch.channels_last) for each in (of_x, of_weight))
        wanted = [which == 1, which == 2, False]
        return lambda: aten.convolution_backward(dy, of_x, of_weight, None, *geometry, wanted)[which - 1]

    def of_pooling(gradient: bool) -> Call:
        ((top, _), (left, _)) = options["padding"]
        window = *map(list, (options["kernel_size"], options["stride"], (top, left), options["dilation"])), False
        if not gradient:
            return lambda: torch.max_pool2d(x, *window)
        _, winners = aten.max_pool2d_with_indices(x, *window)
        return lambda: aten.max_pool2d_with_indices_backward(dy, x, *window, winners)

    def of_loss(gradient: bool) -> Call:
        logits, target = given["logits"], given["target"]
        if not gradient:
            return lambda: torch.nn.functional.cross_entropy(logits, target)
        one, total = torch.ones(()), torch.tensor(float(len(logits)))

        def call() -> Any:
            log = torch.log_softmax(logits, 1)
            dlog = aten.nll_loss_backward(one, log, target, None, 1, -100, total)
            return aten._log_softmax_backward_data(dlog, log, 1, torch.float32)

        return call

    def of_sgd() -> Call:
        moved = torch.nn.Parameter(given["parameter"])
        moved.grad = given["gradient"]
        optimizer = torch.optim.SGD([moved], lr=options["learning_rate"], momentum=options["momentum"])
        optimizer.state[moved]["momentum_buffer"] = given["velocity"]
        return optimizer.step

    calls: dict[str, Callable[[], Call]] = {
        "conv2d": lambda: of_convolution(0),
        "conv2d.dx": lambda: of_convolution(1),
        "conv2d.dweight": lambda: of_convolution(2),
        "max_pool2d": lambda: of_pooling(False),
        "max_pool2d.dx": lambda: of_pooling(True),
        "relu": lambda: lambda: torch.relu(x),
        "relu.dx": lambda: lambda: aten.threshold_backward(dy, x, 0),
        "linear": lambda: lambda: torch.nn.functional.linear(x, weight, bias),
        "linear.dx": lambda: lambda: dy @ weight,
        "linear.dweight": lambda: lambda: dy.t() @ x,
        "cross_entropy": lambda: of_loss(False),
        "cross_entropy.dlogits": lambda: of_loss(True),
        "sgd": of_sgd,
    }
    return calls[problem.operator]()


def onnx_runtime(problem: Problem, arrays: Arrays, threads: int) -> Call | None:
    """ONNX Runtime: a session of one node, weights constant as in an exported model, results bound beforehand."""
    from kernelproof.proofs.adapters.onnx_graph import NODES, attributes, model

    if problem.operator not in ("conv2d", "max_pool2d", "relu", "linear"):
        return None
    import onnxruntime  # pyright: ignore[reportMissingImports]
    from onnx import numpy_helper  # pyright: ignore[reportMissingImports]

    graph = model(
        NODES[problem.operator], arrays, {"y": np.dtype(np.float32)}, attributes(problem.operator, {
            **problem.options, **arrays
        }),
    )  # fmt: skip
    # What is an initializer and no input is packed when the session is made.
    graph.graph.initializer.extend(numpy_helper.from_array(each, name) for name, each in arrays.items() if name != "x")
    del graph.graph.input[1:]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x, y = (onnxruntime.OrtValue.ortvalue_from_numpy(each) for each in (arrays["x"], np.empty(problem.output, "f4")))
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", x)
    binding.bind_ortvalue_output("y", y)

    def call() -> Any:
        session.run_with_iobinding(binding)
        return y

    return call


def jax(problem: Problem, arrays: Arrays, threads: int) -> Call | None:
    """JAX, compiled by XLA for this problem; a gradient as XLA leaves it of forward and backward."""
    from kernelproof.proofs.adapters.jax import FORWARDS, jax, pull_back
    from kernelproof.proofs.forms import forward_arguments

    op, _, argument = problem.operator.partition(".d")
    if op not in FORWARDS:
        return None
    given = {name: jax.numpy.asarray(each) for name, each in arrays.items()}

    def compute(given: Mapping[str, Any]) -> Any:
        shapes = {f"{name}_shape": shape for name, shape in problem.shapes.items()}
        every = {**problem.options, **shapes, **given}
        named = {name: every[name] for name in problem.parameters if name in every}
        if not argument:
            return FORWARDS[op](**named)
        dy = given.get("dy", jax.numpy.ones(()))
        return pull_back(FORWARDS[op], forward_arguments(op, named), argument, dy)

    compiled = jax.jit(compute)
    return lambda: compiled(given).block_until_ready()


def numpy_im2col(problem: Problem, arrays: Arrays, threads: int) -> Call | None:
    """numpy as packages built on it do: every window unrolled into a matrix, then one product by BLAS."""
    options = problem.options
    if problem.op.name == "linear":
        x, weight, dy, bias = _named(arrays)
        calls: dict[str, Call] = {
            "linear": lambda: x @ weight.T + bias,
            "linear.dx": lambda: dy @ weight,
            "linear.dweight": lambda: dy.T @ x,
        }
        return calls[problem.operator]
    if problem.op.name != "conv2d" or options["groups"] > 1 or options["dilation"] != (1, 1):
        return None
    (n, k, p, q), (_, c, r, s) = problem.output, problem.shapes["weight"]
    (down, across), pads = options["stride"], ((0, 0), (0, 0), *options["padding"])
    h, w = (size + sum(pad) for size, pad in zip(problem.shapes["x"][2:], pads[2:], strict=True))

    def columns(x: np.ndarray) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, pads), (r, s), axis=(2, 3))
        return windows[:, :, ::down, ::across].transpose(1, 4, 5, 0, 2, 3).reshape(c * r * s, n * p * q)

    def forward() -> np.ndarray:
        y = arrays["weight"].reshape(k, -1) @ columns(arrays["x"]) + arrays["bias"][:, None]
        return np.ascontiguousarray(y.reshape(k, n, p, q).swapaxes(0, 1))

    def dweight() -> np.ndarray:
        dy = arrays["dy"].swapaxes(0, 1).reshape(k, -1)
        return (dy @ columns(arrays["x"]).T).reshape(k, c, r, s)

    def dx() -> np.ndarray:
        dy = arrays["dy"].swapaxes(0, 1).reshape(k, -1)
        taps = (arrays["weight"].reshape(k, -1).T @ dy).reshape(c, r, s, n, p, q)
        padded = np.zeros((n, c, h, w), np.float32)
        for row in range(r):
            for column in range(s):
                reached = padded[:, :, row : row + down * p : down, column : column + across * q : across]
                reached += taps[:, row, column].swapaxes(0, 1)
        (top, bottom), (left, right) = options["padding"]
        return padded[:, :, top : h - bottom, left : w - right]

    return {"conv2d": forward, "conv2d.dx": dx, "conv2d.dweight": dweight}[problem.operator]


PACKAGES: Mapping[str, str] = {
    "torch": "torch", "torch channels-last": "torch", "onnxruntime": "onnxruntime", "jax": "jax", "numpy": "numpy",
}  # fmt: skip
"""Peers by the name that tables have for them, and the package that each stands on."""

PEERS: Mapping[str, Peer] = {
    "torch": torch_contiguous, "torch channels-last": torch_channels_last, "onnxruntime": onnx_runtime, "jax": jax,
    "numpy": numpy_im2col,
}  # fmt: skip
AS_STARTED = ("jax", "numpy")
"""Packages whose number of threads is settled when they are loaded."""


@functools.cache
def installed() -> dict[str, str]:
    """The packages of the peers that are here, with their versions."""
    return {name: version(name) for name in dict.fromkeys(PACKAGES.values()) if importlib.util.find_spec(name)}


def calls(problem: Problem, arrays: Arrays, threads: int, ours: np.ndarray) -> dict[str, Call]:
    """The call of every peer that is installed and has the operator; raises ValueError if one computes another."""
    made = {}
    for name, peer in PEERS.items():
        if PACKAGES[name] not in installed() or (PACKAGES[name] in AS_STARTED and str(threads) != os.environ["NPROC"]):
            continue
        if (call := peer(problem, arrays, threads)) is None:
            continue
        result = call()
        if result is not None and not same(ours, as_numpy(result)):
            raise ValueError(f"{name} does not compute {problem!r}")
        made[name] = call
    return made


def as_numpy(result: Any) -> np.ndarray:
    return result.numpy() if hasattr(result, "numpy") else np.asarray(result)


def same(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether two results are of the same operator, by shape and roughly by value."""
    difference = np.abs(ours - theirs).max(initial=0) if ours.shape == theirs.shape else np.inf
    return bool(difference <= ANOTHER * np.abs(ours).max(initial=0))

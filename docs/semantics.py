"""Measures docs/semantics.md: `python docs/semantics.py` rewrites its tables, or refuses if a peer is missing.

Every row is one call, made on the specification and, with the same arguments, on every peer.
"""

import importlib.util
import inspect
import platform
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from kernelproof import spec
from kernelproof.spec.backends import specification

PAGE = Path(__file__).with_suffix(".md")
PACKAGES = ("kernelproof", "numpy", "torch", "onnx", "onnxruntime", "jax")
AXES = {"conv2d": 4, "max_pool2d": 4, "flatten": 4, "linear": 2, "cross_entropy": 2, "relu": 1, "sgd": 1}
ABSENT = "-"
inf, nan = np.inf, np.nan


@dataclass(frozen=True)
class Row:
    """One call: the forward's arguments, for a gradient (`relu.dx`) dy too. `open`: a kernel may answer otherwise."""

    operator: str
    case: str
    arguments: Mapping[str, Any]
    open: bool = False

    @property
    def forward(self) -> str:
        return self.operator.partition(".")[0]

    @property
    def gradient(self) -> str:
        """The argument that the gradient is taken in; empty for a forward."""
        return self.operator.partition(".d")[2]

    @property
    def label(self) -> str:
        return f"d{self.gradient}: {self.case}" if self.gradient else self.case


def row(operator: str, case: str, *, open: bool = False, **arguments: Any) -> Row:  # noqa: A002 (the page's word)
    """Lists become float32 arrays, or class numbers, with leading axes of size 1 until the operator takes them."""
    axes = AXES[operator.partition(".")[0]]
    for name, value in arguments.items():
        if isinstance(value, list):
            dtype, least = (np.int64, 1) if name == "target" else (np.float32, 1 if name == "bias" else axes)
            arguments[name] = np.array(value, dtype, ndmin=least)
    return Row(operator, case, arguments, open)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


ROWS = (
    row("conv2d", "NaN", x=[1, nan, 2, 3], weight=[1, 1]),
    row("conv2d", "infinity minus infinity", x=[inf, inf], weight=[1, -1]),
    row("conv2d", "zero weight over infinity", x=[inf, 1], weight=[0]),
    row("conv2d", "infinite weight over padding", open=True, x=[1, 2], weight=[inf, 1, 1], padding=(0, 1)),
    row(
        "conv2d", "the same with a filter for each channel", open=True,
        x=[[[1, 2]]] * 2, weight=[[[[inf, 1, 1]]]] * 2, padding=(0, 1), groups=2,
    ),
    row("conv2d", "NaN weight over padding", open=True, x=[1, 2], weight=[nan, 1, 1], padding=(0, 1)),
    row("conv2d", "-0 times 1", open=True, x=[-0.0], weight=[1]),
    row("conv2d", "sum of negative zeros", open=True, x=[-0.0, -0.0], weight=[1, 1]),
    row("conv2d", "subnormal", x=[2.0**-140], weight=[1]),
    row("conv2d", "padding >= filter", x=[2], weight=[3], padding=(0, 1)),
    row("conv2d", "batch 0", x=zeros(0, 1, 2, 2), weight=[1]),
    row("conv2d", "height 0", x=zeros(1, 1, 0, 1), weight=[1]),
    row("conv2d", "height 0, padded", x=zeros(1, 1, 0, 1), weight=[1], bias=[5], padding=(1, 0)),
    row("conv2d", "no channel", x=zeros(1, 0, 1, 1), weight=zeros(1, 0, 1, 1), bias=[5]),
    row("conv2d", "no filter", x=zeros(1, 1, 1, 1), weight=zeros(0, 1, 1, 1)),
    row("conv2d", "filter larger than the image", x=[1, 2], weight=[1, 1, 1]),
    row("conv2d", "negative padding", x=[[1, 2, 3]] * 3, weight=[1], padding=-1),
    row("conv2d", "one image, no batch axis", x=zeros(1, 1, 1), weight=[1]),
    row("conv2d", "mixed types", x=[1], weight=np.ones((1, 1, 1, 1), np.float16)),
    row("conv2d", "integers", x=np.array([[[[1, 2]]]], np.int32), weight=np.array([[[[3]]]], np.int32)),
    row("conv2d.dx", "pixel that no window reads", x=[1, 2, 3], weight=[1], stride=(1, 2), dy=[nan, 1]),
    row("conv2d.dx", "infinite dy, zero weight", x=[1, 2], weight=[0, 1], dy=[inf]),
    row("conv2d.dweight", "infinite dy over padding", open=True, x=[1], weight=[1, 1, 1], padding=(0, 1), dy=[inf]),
    row("conv2d.dweight", "batch 0", x=zeros(0, 1, 1, 1), weight=[1], dy=zeros(0, 1, 1, 1)),
    row("conv2d.dbias", "batch 0", x=zeros(0, 1, 1, 1), weight=[1], bias=[1], dy=zeros(0, 1, 1, 1)),
    row("conv2d.dbias", "infinity minus infinity", x=[1, 2], weight=[1], bias=[1], dy=[inf, -inf]),
    row("max_pool2d", "NaN after a number", x=[1, nan], kernel_size=(1, 2)),
    row("max_pool2d", "NaN before a number", x=[nan, 1], kernel_size=(1, 2)),
    row("max_pool2d", "first of two NaN is chosen", x=[inf, nan, nan], kernel_size=(1, 3), return_indices=True),
    row("max_pool2d", "first of a tie is chosen", x=[[1, 2], [2, 2]], kernel_size=2, return_indices=True),
    row("max_pool2d", "-0 before 0", x=[-0.0, 0.0], kernel_size=(1, 2), return_indices=True),
    row("max_pool2d", "0 before -0", x=[0.0, -0.0], kernel_size=(1, 2), return_indices=True),
    row("max_pool2d", "-inf and padding", x=[-inf], kernel_size=(1, 3), padding=(0, 1), stride=1, return_indices=True),
    row("max_pool2d", "padding > half the window", x=[-1, -2], kernel_size=(1, 3), padding=(0, 2), stride=1),
    row("max_pool2d", "window wholly in padding", x=[-1, -2], kernel_size=(1, 2), padding=(0, 2), stride=1),
    row("max_pool2d", "ceil_mode, last window incomplete", x=[1, 2, 3], kernel_size=(1, 2), ceil_mode=True),
    row(
        "max_pool2d", "ceil_mode, last window in the right padding",
        x=[1, 2], kernel_size=(1, 2), stride=(1, 3), padding=(0, 1), ceil_mode=True,
    ),
    row("max_pool2d", "window larger than the image", x=[1, 2], kernel_size=(1, 3)),
    row("max_pool2d", "batch 0", x=zeros(0, 1, 2, 2), kernel_size=2),
    row("max_pool2d", "no channel", x=zeros(1, 0, 2, 2), kernel_size=2),
    row("max_pool2d", "height 0", x=zeros(1, 1, 0, 2), kernel_size=1),
    row("max_pool2d", "one image, no batch axis", x=zeros(1, 2, 2), kernel_size=2),
    row("max_pool2d", "integers", x=np.array([[[[-2, -1]]]], np.int32), kernel_size=(1, 2)),
    row("max_pool2d.dx", "tie", x=[2, 2, 1], kernel_size=(1, 3), dy=[1]),
    row("max_pool2d.dx", "-0 before 0", x=[-0.0, 0.0], kernel_size=(1, 2), dy=[1]),
    row("max_pool2d.dx", "NaN", x=[inf, nan, nan], kernel_size=(1, 3), dy=[1]),
    row("max_pool2d.dx", "-inf and padding", x=[-inf], kernel_size=(1, 3), padding=(0, 1), stride=1, dy=[1]),
    row("max_pool2d.dx", "NaN in dy", x=[1, 2], kernel_size=(1, 2), dy=[nan]),
    row("max_pool2d.dx", "overlapping windows", x=[1, 3, 2], kernel_size=(1, 2), stride=1, dy=[10, 1]),
    row("linear", "NaN", x=[[nan, 1], [1, 2]], weight=[[1, 1]]),
    row("linear", "zero weight over infinity", x=[[inf, 1]], weight=[[0, 1]]),
    row("linear", "-0 times 1", open=True, x=[[-0.0]], weight=[[1]]),
    row("linear", "sum of negative zeros", open=True, x=[[-0.0, -0.0]], weight=[[1, 1]]),
    row("linear", "subnormal", x=[2.0**-140], weight=[[1]]),
    row("linear", "batch 0", x=zeros(0, 2), weight=[[1, 2]]),
    row("linear", "no feature", x=zeros(1, 0), weight=zeros(2, 0), bias=[5, 6]),
    row("linear", "no output", x=[[1, 2]], weight=zeros(0, 2)),
    row("linear", "one row, no batch axis", x=zeros(2), weight=[[1, 2]]),
    row("linear", "three axes", x=zeros(1, 1, 2), weight=[[1, 2]]),
    row("linear", "mixed types", x=[1, 2], weight=np.ones((1, 2), np.float16)),
    row("linear.dx", "zero weight, infinite dy", x=[[1, 1]], weight=[[0, 2]], dy=[[inf]]),
    row("linear.dx", "no output", x=[[1, 1]], weight=zeros(0, 2), dy=zeros(1, 0)),
    row("linear.dweight", "batch 0", x=zeros(0, 2), weight=[[1, 2]], dy=zeros(0, 1)),
    row("linear.dbias", "batch 0", x=zeros(0, 2), weight=[[1, 2]], bias=[5], dy=zeros(0, 1)),
    row("relu", "NaN, infinities", x=[nan, inf, -inf]),
    row("relu", "-0", x=[-0.0, 0.0]),
    row("relu", "subnormals", x=[2.0**-140, -(2.0**-140)]),
    row("relu", "no element", x=zeros(0, 3)),
    row("relu", "integers", x=np.array([-1, 2], np.int32)),
    row("relu.dx", "at 0 and -0", x=[0.0, -0.0], dy=[1, 1]),
    row("relu.dx", "at NaN", x=[nan], dy=[1]),
    row("relu.dx", "at infinities", x=[inf, -inf], dy=[1, 1]),
    row("relu.dx", "NaN, infinite dy over a closed gate", x=[-1, -1], dy=[nan, inf]),
    row("flatten", "bits are kept", x=[[nan, -0.0], [inf, -inf]]),
    row("flatten", "batch 0", x=zeros(0, 1, 2, 2)),
    row("flatten", "height 0", x=zeros(2, 1, 0, 2)),
    row("flatten", "three axes", x=zeros(2, 1, 2)),
    row("flatten.dx", "batch 0", x=zeros(0, 1, 2, 2), dy=zeros(0, 4)),
    row("flatten.dx", "bits are kept", x=[[1, 2], [3, 4]], dy=np.array([[nan, -0.0, inf, -inf]], np.float32)),
    row("cross_entropy", "large logits", logits=[[1e4, 0]], target=[1]),
    row("cross_entropy", "NaN", logits=[[nan, 0]], target=[1]),
    row("cross_entropy", "inf at the target", logits=[[inf, 0]], target=[0]),
    row("cross_entropy", "inf elsewhere", logits=[[inf, 0]], target=[1]),
    row("cross_entropy", "-inf at the target", logits=[[-inf, 0]], target=[0]),
    row("cross_entropy", "-inf elsewhere", open=True, logits=[[-inf, 0]], target=[1]),
    row("cross_entropy", "all -inf", logits=[[-inf, -inf]], target=[0]),
    row("cross_entropy", "one class", open=True, logits=[[7]], target=[0]),
    row("cross_entropy", "target too large", logits=[[0, 0]], target=[2]),
    row("cross_entropy", "target -1", logits=[[0, 0]], target=[-1]),
    row("cross_entropy", "target -100", logits=[[0, 0]], target=[-100]),
    row("cross_entropy", "int32 target", logits=[[-inf, 0]], target=np.array([0], np.int32)),
    row("cross_entropy", "uint8 target", logits=[[-inf, 0]], target=np.array([0], np.uint8)),
    row("cross_entropy", "batch 0", logits=zeros(0, 2), target=[]),
    row("cross_entropy.dlogits", "tie", logits=[[0, 0]], target=[0]),
    row("cross_entropy.dlogits", "large logits", logits=[[1e4, 0]], target=[1]),
    row("cross_entropy.dlogits", "-inf", logits=[[-inf, 0]], target=[0]),
    row("cross_entropy.dlogits", "inf", logits=[[inf, 0]], target=[0]),
    row("cross_entropy.dlogits", "NaN in one row only", logits=[[nan, 0], [0, 0]], target=[0, 0]),
    row("sgd", "NaN gradient", parameter=[1, 2], gradient=[nan, 1], velocity=[0, 0], learning_rate=0.5, momentum=0.5),
    row("sgd", "opposite infinities", parameter=[1], gradient=[inf], velocity=[-inf], learning_rate=0.5, momentum=0.5),
    row("sgd", "infinite velocity, momentum 0", parameter=[1], gradient=[1], velocity=[inf], learning_rate=0.5),
    row("sgd", "infinite gradient, rate 0", parameter=[1], gradient=[inf], velocity=[0], learning_rate=0, momentum=0.5),
    row("sgd", "negative rate", parameter=[1], gradient=[1], velocity=[0], learning_rate=-0.5, momentum=0.5),
    row("sgd", "NaN rate", parameter=[1], gradient=[1], velocity=[0], learning_rate=nan, momentum=0.5),
    row("sgd", "momentum > 1", parameter=[1], gradient=[1], velocity=[1], learning_rate=0.5, momentum=2),
    row("sgd", "no element", parameter=zeros(0), gradient=zeros(0), velocity=zeros(0), learning_rate=0.5, momentum=0.5),
)  # fmt: skip


def text(value: Any) -> str:
    """A value as the page shows it: leading axes of size 1 left out, `zeros(0, 2)` for an empty array of that shape."""
    if isinstance(value, (tuple, list)) and any(hasattr(each, "shape") for each in value):
        return "; ".join(map(text, value))
    if not hasattr(value, "shape"):
        return str(value)
    array = np.asarray(value)
    note = "" if array.dtype in (np.float32, np.int64) else f" {array.dtype}"
    if not array.size:
        return zeros_text(array) + note
    while array.shape[:1] == (1,):
        array = array[0]
    shown = np.array2string(np.asarray(array), separator=", ", formatter={"all": lambda x: str(x).removesuffix(".0")})
    return shown.replace("\n", "") + note


def zeros_text(array: np.ndarray) -> str:
    return f"zeros({', '.join(map(str, array.shape))})"


def call(row: Row) -> str:
    """The arguments as the page shows them."""
    shown = {
        name: zeros_text(value)
        if name != "target" and hasattr(value, "shape") and not any(value.tobytes())
        else text(value)
        for name, value in row.arguments.items()
    }
    return ", ".join(f"{name}={value}" for name, value in shown.items())


def outcome(compute: Callable[[], Any], refusal: type[Exception]) -> str:
    """What the page shows for a call: its result, or the type of the exception that refused it."""
    try:
        with np.errstate(all="ignore"):
            return f"`{text(compute())}`"
    except AbsentError:
        return ABSENT
    except (ImportError, NameError, AttributeError):  # A broken peer or script is no refusal.
        raise
    except refusal as error:
        return type(error).__name__


def ours(row: Row, perform: Callable[..., Any] = specification) -> str:
    """The kernelproof column, from the specification or from whatever performs operators (a Backend)."""
    operator = spec.find(row.operator)
    shapes = {f"{name}_shape": getattr(value, "shape", None) for name, value in row.arguments.items()}
    parameters = inspect.signature(operator).parameters
    arguments = {name: value for name, value in {**shapes, **row.arguments}.items() if name in parameters}
    return outcome(partial(perform, operator, **arguments), spec.KernelproofError)


class AbsentError(Exception):
    """The peer has no such operator, option or gradient."""


def both(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def in_pytorch(row: Row) -> Any:
    import torch

    def sgd(parameter, gradient, velocity, learning_rate, momentum=0):
        optimizer = torch.optim.SGD([parameter], learning_rate, momentum)
        parameter.grad, optimizer.state[parameter]["momentum_buffer"] = gradient, velocity
        optimizer.step()
        return parameter, optimizer.state[parameter]["momentum_buffer"]

    forwards: dict[str, Callable[..., Any]] = {"flatten": partial(torch.flatten, start_dim=1), "sgd": sgd}
    forward = forwards.get(row.forward) or getattr(torch.nn.functional, row.forward)
    names = {"x": "input", "logits": "input"}
    arguments: dict[str, Any] = {
        names.get(name, name): torch.from_numpy(value.copy()) if hasattr(value, "shape") else value
        for name, value in row.arguments.items()
    }
    dy = arguments.pop("dy", None)
    if not row.gradient:
        return forward(**arguments)
    wanted = arguments[names.get(row.gradient, row.gradient)].requires_grad_()
    return torch.autograd.grad(forward(**arguments), wanted, dy)[0]


def in_onnx_runtime(row: Row) -> Any:
    import onnxruntime
    from onnx import helper

    operator = "SoftmaxCrossEntropyLoss" if row.forward == "cross_entropy" else spec.OPS[row.forward].onnx
    if row.gradient or not operator:
        raise AbsentError
    arrays = {name: value for name, value in row.arguments.items() if hasattr(value, "shape")}
    options = {name: value for name, value in row.arguments.items() if name not in arrays}
    attributes: dict[str, Any] = {"Gemm": {"transB": 1}, "Flatten": {"axis": 1}}.get(operator, {})
    if operator in ("Conv", "MaxPool"):
        kernel = arrays["weight"].shape[2:] if operator == "Conv" else both(options["kernel_size"])
        stride = both(options.get("stride", kernel if operator == "MaxPool" else 1))
        attributes = {"kernel_shape": kernel, "strides": stride, "pads": both(options.get("padding", 0)) * 2}
    spelled = {"groups": "group", "ceil_mode": "ceil_mode"}
    attributes |= {spelled[name]: int(value) for name, value in options.items() if name in spelled}
    outputs = {"y": arrays[next(iter(arrays))].dtype} | ({"index": np.int64} if "return_indices" in options else {})

    def declared(name: str, dtype: Any, shape: Any = None) -> Any:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)

    graph = helper.make_graph(
        [helper.make_node(operator, list(arrays), list(outputs), **attributes)],
        operator,
        [declared(name, array.dtype, array.shape) for name, array in arrays.items()],
        [declared(name, dtype) for name, dtype in outputs.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnxruntime.set_default_logger_severity(4)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return tuple(session.run(None, arrays))


def in_jax(row: Row) -> Any:
    import jax
    from jax import lax
    from jax import numpy as jnp

    def conv2d(x, weight, bias=None, stride=1, padding=0, groups=1):
        pads = [(pad, pad) for pad in both(padding)]
        y = lax.conv_general_dilated(x, weight, both(stride), pads, feature_group_count=groups)
        return y if bias is None else y + bias[:, None, None]

    def max_pool2d(x, kernel_size, stride=None, padding=0):
        lowest = -inf if x.dtype == np.float32 else np.iinfo(x.dtype).min
        batch = (1,) * (x.ndim - 2)
        pads = [*((0, 0) for _ in batch), *((pad, pad) for pad in both(padding))]
        window, strides = batch + both(kernel_size), batch + both(kernel_size if stride is None else stride)
        return lax.reduce_window(x, np.array(lowest, x.dtype), lax.max, window, strides, pads)

    def linear(x, weight, bias=0):
        return x @ weight.T + bias

    def cross_entropy(logits, target):
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), target[:, None], axis=1).mean()

    forwards: dict[str, Callable[..., Any]] = {
        "relu": lambda x: jax.nn.relu(x),
        "flatten": lambda x: lax.collapse(x, 1),
    }
    forwards |= {each.__name__: each for each in (conv2d, max_pool2d, linear, cross_entropy)}
    forward = forwards.get(row.forward)
    arguments: dict[str, Any] = {
        name: jnp.asarray(v) if hasattr(v, "shape") else v for name, v in row.arguments.items()
    }
    dy = arguments.pop("dy", jnp.ones(()))
    if forward is None or not arguments.keys() <= inspect.signature(forward).parameters.keys():
        raise AbsentError
    if not row.gradient:
        return forward(**arguments)
    _, pull_back = jax.vjp(lambda wanted: forward(**arguments | {row.gradient: wanted}), arguments[row.gradient])
    return pull_back(dy)[0]


PEERS = {"PyTorch": in_pytorch, "ONNX Runtime": in_onnx_runtime, "JAX": in_jax}


def cells(row: Row) -> list[str]:
    """One line of a table; a peer's answer is bold where it is not ours. Two refusals are one answer."""
    own = ours(row)
    line = [row.label, f"`{call(row)}`", own + (" (open)" if row.open else "")]
    for peer in PEERS.values():
        cell = outcome(partial(peer, row), Exception)
        same = cell in (own, ABSENT) or "`" not in cell + own
        line.append(cell if same else f"**{cell}**")
    return line


def table(operator: str) -> str:
    """The operator's rows in markdown; a peer that has none of them gets no column."""
    lines = [["case", "call", "kernelproof", *PEERS], *(cells(row) for row in ROWS if row.forward == operator)]
    columns = [(name, "---", *column) for name, *column in zip(*lines, strict=True) if set(column) != {ABSENT}]
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))


def filled(page: str, name: str, content: str) -> str:
    """The page with new content between the markers of this name; raises ValueError if they do not stand there once."""
    between = rf"(<!-- {name} -->\n).*?(\n<!-- end -->)"
    page, count = re.subn(between, lambda marker: marker[1] + content + marker[2], page, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{PAGE.name}: {count} places marked <!-- {name} -->; needs 1, closed by <!-- end -->.")
    return page


def main() -> None:
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        sys.exit(f"semantics: nothing written, peers are missing. Run: pip install {' '.join(missing)}")
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    page = filled(PAGE.read_text(), "versions", f"Measured with {versions}, on {platform.machine()} processors.")
    for operator in spec.OPS:
        page = filled(page, operator, table(operator))
    PAGE.write_text(page)


if __name__ == "__main__":
    main()

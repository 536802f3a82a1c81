"""A kernel as its author declares it: what it computes, in which form, on which problems, how precisely."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np

from kernelproof import kernels
from kernelproof.kernels.contract import DTYPES
from kernelproof.kernels.gpu import gpu
from kernelproof.kernels.source import kernels_hash, source_hash
from kernelproof.spec import OPERATORS, OPS, ParameterError, UnsupportedError, find
from kernelproof.spec.errors import type_of

from . import adapters
from .judging import AXES, Declared, Kernel
from .problems import Problem
from .values import PRECISIONS


@dataclass(frozen=True)
class Subject:
    """Functions by operator name, all in the operator's own form, and what was declared about them.

    `supports` says which problems it was written for: the others are unsupported, which is no pass. `op` and `limits`
    are what was asked for and declared, as text; `source` names the state of the kernel's source. `threads` is called
    with a number of threads to use, and may return a context manager; `threads_name` is what its author calls it by.
    `reentrant`: several threads may call at once; `unavailable`: why it cannot run here at all;
    `checked`: its calls go through the operators' doors, so that what is wrong with them is refused.
    """

    name: str
    functions: Mapping[str, Kernel]
    dtypes: tuple[str, ...] = ("float32",)
    supports: Callable[[Problem], bool] = field(default=lambda problem: True)
    precision: str | None = None
    layouts: Mapping[str, str] = field(default_factory=dict)
    op: str | None = None
    limits: str | None = None
    source: str | None = None
    threads: Callable[[int], object] | None = None
    reentrant: bool = True
    checked: bool = False
    threads_name: str | None = None
    unavailable: str = ""

    def kernel(self, operator: str) -> Declared:
        """The function for an operator, with what laws have to know of the declaration."""

        def supports(problem: Problem) -> bool:
            return problem.dtype in self.dtypes and self.supports(problem)

        return Declared(self.functions[operator], supports, self.threads, self.reentrant, self.checked, self.precision)

    @property
    def declared(self) -> dict[str, Any]:
        """What a report tells of the declaration: with it, `subject_of` makes this subject again."""
        return {
            "op": self.op,
            "dtypes": list(self.dtypes),
            "supports": self.limits,
            "precision": self.precision,
            "layouts": dict(self.layouts),
            "threads": self.threads_name,
        }


def subject_of(
    kernel: Any,
    op: str | None = None,
    *,
    dtypes: tuple[str, ...] | None = None,
    supports: str | Callable[..., bool] | None = None,
    precision: str | None = None,
    layouts: Mapping[str, str] | None = None,
    threads: str | Callable[[int], object] | None = None,
    name: str | None = None,
) -> Subject:
    """The subject that a backend ("cpu", "cuda"), an adapter ("torch" ...), a function or an object is.

    An object has `forward` and `backward`, a class a constructor like PyTorch's layer of that operator.
    `supports` is an expression such as `"stride[0] == stride[1] and groups == 1"` or a function of the same names: the
    operator's options, its arrays' shapes (`x_shape`, `weight_shape` ...), `dtype`. `layouts` gives the axes of arrays
    that are not in the specification's order, the result's as `y`: `{"x": "nhwc", "weight": "rsck", "y": "npqk"}`.
    `threads` is a function that is told how many threads to use, such as `torch.set_num_threads`, or its name:
    `"threadpoolctl:threadpool_limits"`.
    `name` is what reports call the kernel and reproductions import, by default its module and name.
    Raises ParameterError.
    """
    if precision is not None and precision not in PRECISIONS:
        raise ParameterError("verify", f"precision={precision!r}", f"one of {', '.join(PRECISIONS)}", "Choose one.")
    if dtypes is not None and (isinstance(dtypes, str) or not dtypes or not set(dtypes) <= set(DTYPES)):
        raise ParameterError("verify", f"dtypes={dtypes!r}", f"some of {DTYPES}, as a tuple", "Correct them.")
    limits = name_of(supports) if callable(supports) else supports
    threads_name = name_of(threads) if callable(threads) else threads
    threads = _named(threads) if isinstance(threads, str) else threads
    if isinstance(kernel, str):
        kernel = kernels.backend(kernel) if kernel in adapters.OWN else adapters.load(kernel)
    if isinstance(kernel, Subject):
        kept = kernel if op is None else _only(kernel, op)
        return replace(
            kept,
            op=op or kept.op,
            dtypes=dtypes or kept.dtypes,
            precision=precision or kept.precision,
            threads=threads or kept.threads,
            threads_name=threads_name or kept.threads_name,
            **({} if supports is None else {"supports": _declared(supports), "limits": limits}),
        )
    if isinstance(kernel, kernels.Backend):
        names = list(OPERATORS) if op is None else operators_of(op)
        functions: dict[str, Kernel] = {name: on_backend(kernel, name) for name in names}
        name, dtypes = name or kernel.name, dtypes or ("float32", "float64")
        source: str | None = kernels_hash(kernel.name)
        threads = threads or (_cpu_threads if kernel.name == "cpu" else None)
    else:
        if op is None:
            raise ParameterError("verify", "a kernel without op", "the operator it computes", 'Pass op="conv2d".')
        find(op)
        functions, name = _functions(kernel, op), name or name_of(kernel)
        source = _source_of(kernel)
    for operator, function in functions.items():
        functions[operator] = _permuted(function, operator, layouts) if layouts else function
    return Subject(
        name, functions, dtypes or ("float32",), _declared(supports), precision, layouts or {}, op, limits, source,
        threads,
        # An object that keeps what forward saw for backward serves one caller at a time.
        reentrant=inspect.isclass(kernel) or not hasattr(kernel, "backward"),
        checked=isinstance(kernel, kernels.Backend),
        threads_name=threads_name,
        unavailable=_unavailable(kernel),
    )  # fmt: skip


def _unavailable(kernel: Any) -> str:
    if not isinstance(kernel, kernels.Backend) or kernel.name != "cuda":
        return ""
    there_is, what = gpu()
    return "" if there_is else f"no GPU for the CUDA kernels ({what}); NUMBA_ENABLE_CUDASIM=1 runs them in a simulator"


def _named(function: str) -> Callable[[int], object]:
    """The function called package.module:name; raises ParameterError."""
    module, _, attribute = function.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, ValueError, AttributeError) as error:
        raise ParameterError(
            "verify", f"threads={function!r}: {error}", "a function, as package.module:name", "Correct the name."
        ) from error


def _cpu_threads(count: int) -> object:
    from kernelproof.kernels.cpu.launch import on_threads

    return on_threads(count)


def _only(subject: Subject, op: str) -> Subject:
    """The subject with the functions of that operator alone; raises UnsupportedError if it has none."""
    functions = {name: subject.functions[name] for name in operators_of(op) if name in subject.functions}
    if not functions:
        has = f"one of {', '.join(subject.functions)}"
        raise UnsupportedError("verify", f"{subject.name} has no {op}", has, "Choose one of them.")
    return replace(subject, functions=functions)


def operators_of(op: str) -> list[str]:
    """`conv2d` and its gradients for the row's name, one operator for a full one such as `conv2d.dx`."""
    find(op)
    return [name for name in OPERATORS if name == op or name.startswith(f"{op}.")]


def on_backend(backend: kernels.Backend, operator: str) -> Kernel:
    """The function with which a backend performs an operator."""
    return lambda *args, **kwargs: backend(OPERATORS[operator], *args, **kwargs)


def name_of(kernel: Any) -> str:
    """What to call the kernel in a report: its module and name."""
    named = kernel if hasattr(kernel, "__qualname__") else type(kernel)
    return f"{named.__module__}:{named.__qualname__}"


def _source_of(kernel: Any) -> str | None:
    """Names the state of the module that defines the kernel and of what it imports of its own package or folder."""
    named = inspect.unwrap(kernel)
    own = getattr(named, "__module__", None) or type(named).__module__
    file = getattr(sys.modules.get(own), "__file__", None)
    if file is None:
        return None  # Typed at a prompt.
    top, folder = own.partition(".")[0], Path(file).parent

    def find(name: str) -> Path | None:
        if name == own:
            return Path(file)
        try:
            found = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            return None  # A name of a module, not a module.
        if found is None or not found.has_location or found.origin is None:
            return None
        path = Path(found.origin)
        beside = path.parent == folder and folder.name not in ("site-packages", "dist-packages")
        return path if name.partition(".")[0] == top or beside else None

    return source_hash(own, find)


def _functions(kernel: Any, op: str) -> dict[str, Kernel]:
    if inspect.isclass(kernel) and hasattr(kernel, "backward"):
        return _of_module(kernel, op)
    if hasattr(kernel, "forward") and hasattr(kernel, "backward"):
        return _of_pair(kernel, op)
    if not callable(kernel):
        raise ParameterError(
            "verify", type_of(kernel), "a function, or forward and backward", "See docs/prove-your-kernel.md."
        )
    return {op: kernel}


def _of_pair(kernel: Any, op: str) -> dict[str, Kernel]:
    """`forward` has the operator's own arguments; `backward(dy)` then gives the gradients, in the arguments' order.

    Both are judged: the forward as the operator, each gradient after a forward of the same problem.
    """
    row = _row(op)

    def gradient(which: int, argument: str) -> Kernel:
        def run(*args: Any, **kwargs: Any) -> Any:
            given = named_arguments(f"{op}.d{argument}", args, kwargs)
            kernel.forward(**forward_arguments(row.name, given))
            gradients = kernel.backward(given["dy"])
            return gradients[which] if isinstance(gradients, tuple | list) else gradients

        return run

    return {op: kernel.forward} | {
        f"{op}.d{argument}": gradient(which, argument) for which, argument in enumerate(row.gradients)
    }


def _of_module(kernel: Any, op: str) -> dict[str, Kernel]:
    """A class like `torch.nn.Conv2d`: built from the options, `weight` and `bias` set, called, then `backward(dy)`.

    `backward` returns dx and leaves `dweight` and `dbias` on the object. Training and evaluation mode, where the class
    has them, take turns: neither may change the answer.
    """
    row, calls = _row(op), iter(range(2**62))

    def built(given: Mapping[str, Any]) -> Any:
        layer = kernel(**_constructor(row.name, given))
        for name in ("weight", "bias"):
            if name in given:
                setattr(layer, name, given[name])
        mode = "train" if next(calls) % 2 else "eval"
        getattr(layer, mode, lambda: None)()
        return layer

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = named_arguments(op, args, kwargs)
        return built(given)(given["x"])

    def gradient(argument: str) -> Kernel:
        def run(*args: Any, **kwargs: Any) -> Any:
            named = named_arguments(f"{op}.d{argument}", args, kwargs)
            given = forward_arguments(row.name, named)
            layer = built(given)
            layer(given["x"])
            dx = layer.backward(named["dy"])
            return dx if argument == "x" else getattr(layer, f"d{argument}")

        return run

    return {op: forward} | {f"{op}.d{argument}": gradient(argument) for argument in row.gradients}


def _row(op: str) -> Any:
    if op not in OPS:
        raise ParameterError(
            "verify", f"op={op!r} for forward and backward", f"one of {', '.join(OPS)}", "Name the row."
        )
    return OPS[op]


def named_arguments(operator: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The call's arguments by the operator's own names."""
    return dict(inspect.signature(find(operator)).bind(*args, **kwargs).arguments)


_NEUTRAL = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1}


def forward_arguments(op: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The forward's arguments for a gradient's: ones for an operand that the gradient does not depend on.

    The gradient in the bias is told no options, for it depends on none: there the forward gets those that do nothing.
    """
    arguments = {}
    for name, parameter in inspect.signature(find(op)).parameters.items():
        if name in given:
            arguments[name] = given[name]
        elif name == "bias":
            arguments[name] = np.zeros(given["dy"].shape[1], given["dy"].dtype)
        elif name in _NEUTRAL:
            arguments[name] = _NEUTRAL[name]
        elif parameter.default is parameter.empty:
            arguments[name] = np.ones(given.get(f"{name}_shape") or _shape_beside(op, name, given), given["dy"].dtype)
    return arguments


def _shape_beside(op: str, name: str, given: Mapping[str, Any]) -> tuple[int, ...]:
    """A shape of x or weight with which the forward gives dy's, where nothing tells it: one channel, one tap."""
    n, k, *image = given["dy"].shape
    if name == "x":
        features = given["weight"].shape[1] if op == "linear" and "weight" in given else 1
        return (n, features, *image)
    return (k, given["x"].shape[1]) if op == "linear" and "x" in given else (k, 1, *(1 for _ in image))


def _constructor(op: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What PyTorch's layer of this operator is built from."""
    options = {name: each for name, each in given.items() if name not in ("x", "weight", "bias", "return_indices")}
    if op == "conv2d":
        filters, channels, *kernel_size = given["weight"].shape
        sizes = (channels * given.get("groups", 1), filters, tuple(kernel_size))
        return dict(zip(("in_channels", "out_channels", "kernel_size"), sizes, strict=True)) | options | {
            "bias": given.get("bias") is not None
        }  # fmt: skip
    if op == "linear":
        k, c = given["weight"].shape
        return {"in_features": c, "out_features": k, "bias": given.get("bias") is not None}
    return options


def _declared(supports: str | Callable[..., bool] | None) -> Callable[[Problem], bool]:
    if supports is None:
        return lambda problem: True
    holds = _expression(supports) if isinstance(supports, str) else supports
    return lambda problem: bool(holds(**_facts(problem)))


def _facts(problem: Problem) -> dict[str, Any]:
    """What a declaration may speak of: options, shapes, dtype."""
    return {
        **problem.options,
        **{f"{name}_shape": each for name, each in problem.shapes.items()},
        "dtype": problem.dtype,
    }


def _expression(text: str) -> Callable[..., bool]:
    try:
        code: CodeType = compile(text, "supports", "eval")
    except SyntaxError as error:
        raise ParameterError("verify", f"supports={text!r}", "a Python expression", "Correct it.") from error

    def holds(**facts: Any) -> bool:
        try:
            return bool(eval(code, {"__builtins__": {"len": len, "max": max, "min": min, "sum": sum}}, facts))
        except NameError as error:
            raise ParameterError(
                "verify", f"supports={text!r}: {error}", f"only the names {', '.join(facts)}", "Correct it."
            ) from error

    return holds


def _permuted(function: Kernel, operator: str, layouts: Mapping[str, str]) -> Kernel:
    """The function with its arrays in the author's axis order, seen in the specification's."""
    letters = {"x": "nchw", "weight": "kcrs", "dy": "nkpq", "y": AXES.get(operator, "")}
    if operator.startswith("linear"):
        letters |= {"x": "nc", "weight": "kc", "dy": "nk"}
    if operator.startswith("max_pool2d"):
        letters["dy"] = "ncpq"
    order = {}
    for name, layout in layouts.items():
        if name not in letters or sorted(layout) != sorted(letters[name]):
            raise ParameterError(
                "verify",
                f"layout {name}={layout}",
                " or ".join(f"{k}={v} in any order" for k, v in letters.items()),
                "Correct it.",
            )
        order[name] = [letters[name].index(axis) for axis in layout]

    def run(*args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(find(operator)).bind(*args, **kwargs)
        for name, axes in order.items():
            if name in given.arguments:
                given.arguments[name] = given.arguments[name].transpose(axes)
            if f"{name}_shape" in given.arguments:
                shape = given.arguments[f"{name}_shape"]
                given.arguments[f"{name}_shape"] = tuple(shape[axis] for axis in axes)
        result = function(*given.args, **given.kwargs)
        if "y" not in order:
            return result
        back = np.argsort(order["y"])
        return tuple(each.transpose(back) for each in result) if isinstance(result, tuple) else result.transpose(back)

    return run

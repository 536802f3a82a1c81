"""A kernel as its author declares it: what it computes, in which form, on which problems, how precisely."""

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import CodeType
from typing import Any

from kernelproof import kernels
from kernelproof.kernels.contract import DTYPES, Precision
from kernelproof.kernels.gpu import gpu
from kernelproof.kernels.source import kernels_hash, source_hash
from kernelproof.spec import OPERATORS, ParameterError, UnsupportedError, find
from kernelproof.spec.errors import type_of

from . import adapters
from .forms import functions_of, permuted
from .judging import Declared, Kernel
from .problems import Problem
from .values import OF_CONVOLUTIONS, PRECISIONS

PROMISED: Mapping[Precision, str] = {"fast": "f16x3", "tf32": "tf32", "fp16": "fp16", "bf16": "bf16"}
"""The precision class that the CUDA kernels promise, by the word that asks for it."""

CONVOLUTIONS = ("conv2d", "conv2d.dx", "conv2d.dweight")
"""The operators that a class of `OF_CONVOLUTIONS` may be declared for."""


@dataclass(frozen=True)
class Subject:
    """Functions by operator name, all in the operator's own form, and what was declared about them.

    `supports` says which problems it was written for: the others are unsupported, which is no pass. `op` and `limits`
    are what was asked for and declared, as text; `source` names the state of the kernel's source. `threads` is called
    with a number of threads to use, and may return a context manager; `threads_name` is what its author calls it by.
    `reentrant`: several threads may call at once; `unavailable`: why it cannot run here at all;
    `checked`: its calls go through the operators' doors, so that what is wrong with them is refused; `rounds_as`: the
    class of its rounding on one problem, if it is not `precision` on all.
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
    rounds_as: Callable[[Problem], str | None] | None = None

    def kernel(self, operator: str) -> Declared:
        """The function for an operator, with what laws have to know of the declaration."""

        def supports(problem: Problem) -> bool:
            return problem.dtype in self.dtypes and self.supports(problem)

        return Declared(
            self.functions[operator], supports, self.threads, self.reentrant, self.checked,
            self.precision_of(operator), self.rounds_as,
        )  # fmt: skip

    def precision_of(self, operator: str) -> str | None:
        """The declared class where the operator can have it: the bias of a convolution by FFT has no transform."""
        return None if self.precision in OF_CONVOLUTIONS and operator not in CONVOLUTIONS else self.precision

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
    A backend's `precision` is the word that it is asked with: "fast", "tf32", "fp16" or "bf16" for "cuda", which then
    is held to that class (fast to f16x3) in the operators that know the word.
    `threads` is a function that is told how many threads to use, such as `torch.set_num_threads`, or its name:
    `"threadpoolctl:threadpool_limits"`.
    `name` is what reports call the kernel and reproductions import, by default its module and name.
    Raises ParameterError.
    """
    if isinstance(kernel, str):
        kernel = kernels.backend(kernel) if kernel in adapters.OWN else adapters.load(kernel)
    if isinstance(kernel, kernels.Backend) and precision is not None:
        return _with_less_precision(kernel, op, precision, supports)
    if precision is not None and precision not in PRECISIONS:
        raise ParameterError("verify", f"precision={precision!r}", f"one of {', '.join(PRECISIONS)}", "Choose one.")
    if dtypes is not None and (isinstance(dtypes, str) or not dtypes or not set(dtypes) <= set(DTYPES)):
        raise ParameterError("verify", f"dtypes={dtypes!r}", f"some of {DTYPES}, as a tuple", "Correct them.")
    if precision in OF_CONVOLUTIONS and op is not None and not set(operators_of(op)) & set(CONVOLUTIONS):
        raise ParameterError(
            "verify", f"precision={precision!r} for {op}", f"one of {', '.join(CONVOLUTIONS)}",
            "Leave it out: this operator is held to all bits of its dtype, or to a class such as tf32.",
        )  # fmt: skip
    limits = name_of(supports) if callable(supports) else supports
    threads_name = name_of(threads) if callable(threads) else threads
    threads = _named("threads", threads) if isinstance(threads, str) else threads
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
        functions, name = functions_of(kernel, op), name or name_of(kernel)
        source = _source_of(kernel)
    for operator, function in functions.items():
        functions[operator] = permuted(function, operator, layouts) if layouts else function
    return Subject(
        name, functions, dtypes or ("float32",), _declared(supports), precision, layouts or {}, op, limits, source,
        threads,
        # An object that keeps what forward saw for backward serves one caller at a time.
        reentrant=inspect.isclass(kernel) or not hasattr(kernel, "backward"),
        checked=isinstance(kernel, kernels.Backend),
        threads_name=threads_name,
        unavailable=_unavailable(kernel),
        rounds_as=_as_planned if isinstance(kernel, kernels.Backend) and kernel.name == "cpu" else None,
    )  # fmt: skip


def subject_for(problem: Problem, kernel: Any, **declared: Any) -> Subject:
    """The subject that a problem is tried on again: the kernel as it was declared, of the problem's own precision."""
    op = problem.op.name if hasattr(kernel, "backward") else problem.operator
    return subject_of(kernel, op, precision=problem.precision, **declared)


def _with_less_precision(
    backend: kernels.Backend, op: str | None, precision: str, supports: str | Callable[..., bool] | None
) -> Subject:
    """A backend asked with a precision's word, or its class; raises ParameterError where it promises no class by it."""
    word: Precision | None = next((word for word, kind in PROMISED.items() if precision in (word, kind)), None)
    if backend.name != "cuda" or word is None:
        raise ParameterError(
            "verify", f"backend {backend.name!r} with precision={precision!r}",
            f"backend 'cuda' with one of {', '.join(PROMISED)}",
            "Leave precision out: then the backend is held to its dtypes' own.",
        )  # fmt: skip
    asked = backend.at(word)
    rounded = [each for each in (OPERATORS if op is None else operators_of(op)) if asked.rounds(OPERATORS[each])]
    if not rounded:
        raise UnsupportedError(
            "verify", f"{op} with precision={word!r}", "an operator that knows the word", "Leave it out."
        )
    whole = subject_of(asked, op, dtypes=("float32",), supports=supports)
    return replace(whole, functions={each: whole.functions[each] for each in rounded}, precision=PROMISED[word])


def _unavailable(kernel: Any) -> str:
    if not isinstance(kernel, kernels.Backend) or kernel.name != "cuda":
        return ""
    there_is, what = gpu()
    return "" if there_is else f"no GPU for the CUDA kernels ({what}); NUMBA_ENABLE_CUDASIM=1 runs them in a simulator"


def _named(what: str, function: str) -> Callable[..., Any]:
    """The function called package.module:name; raises ParameterError."""
    module, _, attribute = function.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
        if not callable(found):
            raise TypeError(f"it is {type_of(found)}")
        return found
    except Exception as error:  # What importing it raises too.
        raise ParameterError(
            "verify", f"{what}={function!r}: {error}", "a function, as package.module:name", "Correct the name."
        ) from error


def _cpu_threads(count: int) -> object:
    from kernelproof.kernels.cpu.launch import on_threads

    return on_threads(count)


def _as_planned(problem: Problem) -> str | None:
    """By what the CPU's planner takes: Winograd F(2x2, 3x3) rounds by its own intermediate sums."""
    from .algorithms import rounds_as  # It makes subjects.

    return rounds_as(problem)


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
    """What to call the kernel in a report, by which it is imported again: its module and name.

    An object's are those of a module that has it; else it is its class called, without arguments if it can be.
    """
    if hasattr(kernel, "__qualname__"):
        return f"{kernel.__module__}:{kernel.__qualname__}"
    kind = type(kernel)
    for module in (kind.__module__, *list(sys.modules)):
        for name, value in list(getattr(sys.modules.get(module), "__dict__", {}).items()):
            if value is kernel:
                return f"{module}:{name}"
    try:
        inspect.signature(kind).bind()
    except (TypeError, ValueError):
        return f"{kind.__module__}:{kind.__qualname__}(...)"
    return f"{kind.__module__}:{kind.__qualname__}()"


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
        if re.fullmatch(r"[\w.]+:[\w.]+", text):
            return _named("supports", text)  # As a report calls a function that was declared.
        raise ParameterError("verify", f"supports={text!r}", "a Python expression", "Correct it.") from error

    def holds(**facts: Any) -> bool:
        try:
            return bool(eval(code, {"__builtins__": {"len": len, "max": max, "min": min, "sum": sum}}, facts))
        except NameError as error:
            raise ParameterError(
                "verify", f"supports={text!r}: {error}", f"only the names {', '.join(facts)}", "Correct it."
            ) from error
        except Exception as error:  # Of an axis that an array has not, for example.
            given = ", ".join(f"{name}={value!r}" for name, value in facts.items())
            raise ParameterError(
                "verify", f"supports={text!r} raises {type(error).__name__}: {error}",
                f"an expression that holds or not for {given}", "Correct it.",
            ) from error  # fmt: skip

    return holds

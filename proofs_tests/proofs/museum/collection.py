"""What the museum keeps: a fault with its source and trigger, or a correct kernel that is unlike the others."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from kernelproof.spec import find

K = TypeVar("K", bound=Callable[..., Any])


@dataclass(frozen=True)
class Mutant:
    """A clean kernel of `operator` with one fault from a public report planted in it.

    `checked`: it is one that refuses wrong calls, but for the fault, and so is held to the laws of bad input (L9).
    """

    name: str
    operator: str
    source: str
    fault: str
    trigger: str
    kernel: Callable[..., Any]
    checked: bool = False


@dataclass(frozen=True)
class Control:
    """A correct kernel of `operator`, computed in an uncommon way: no law may accuse it in its precision class."""

    name: str
    operator: str
    way: str
    kernel: Callable[..., Any]
    precision: str | None = None


MUSEUM: dict[str, Mutant] = {}
"""Every mutant by its name; `@mutant` fills it."""
CONTROLS: dict[str, Control] = {}
"""Every correct kernel by its name; `@control` fills it."""


def mutant(operator: str, source: str, trigger: str, checked: bool = False) -> Callable[[K], K]:
    """Keep the function or class below as a mutant: its name is the mutant's, its docstring the fault."""

    def keep(kernel: K) -> K:
        name, fault, made = _kept(operator, kernel)
        MUSEUM[name] = Mutant(name, operator, source, fault, trigger, made, checked)
        return kernel

    return keep


def control(operator: str, precision: str | None = None) -> Callable[[K], K]:
    """Keep the function or class below as a control: its docstring says what is uncommon about it."""

    def keep(kernel: K) -> K:
        name, way, made = _kept(operator, kernel)
        CONTROLS[name] = Control(name, operator, way, made, precision)
        return kernel

    return keep


def _kept(operator: str, kernel: Callable[..., Any]) -> tuple[str, str, Callable[..., Any]]:
    find(operator)
    name = kernel.__name__
    if name in MUSEUM or name in CONTROLS:
        raise ValueError(f"museum: two kernels are called {name}; needs one name each. Rename one.")
    return name, " ".join((kernel.__doc__ or "").split()), kernel() if isinstance(kernel, type) else kernel

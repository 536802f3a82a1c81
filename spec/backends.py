"""Where a chain finds what performs it: the specification, an installed backend, a module of functions."""

from collections.abc import Callable
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from .errors import ParameterError, UnsupportedError
from .layers import Perform


def specification(operator: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Perform an operator as it is specified."""
    return operator(*args, **kwargs)


def performer(backend: str | Perform | ModuleType, precision: str) -> Perform:
    """A perform for a backend's name, a module with functions of the operators' names, or itself if it is one."""
    if isinstance(backend, str):
        backend = load("kernelproof.backends", backend)
    elif isinstance(backend, ModuleType):
        backend = functions_of(backend)
    if not callable(backend):
        raise ParameterError("SpecChain", f"compile({backend!r})", "a name, a callable or a module", "Pass 'cpu'.")
    if precision == "strict":
        return backend
    at = getattr(backend, "at", None)
    if at is None:
        raise UnsupportedError("SpecChain", f"precision={precision!r}", "a backend's name with it", "Pass 'cpu'.")
    return at(precision)


def load(group: str, name: str) -> Any:
    """What an installed package offers under this name; raises UnsupportedError, saying what to install."""
    offers = {each.name: each for each in entry_points(group=group)}
    if name not in offers:
        known = ", ".join(sorted(offers)) or "none is installed"
        raise UnsupportedError(
            "SpecChain", f"{name!r} is not among {group}", f"one of: {known}", "Install kernelproof."
        )
    try:
        return offers[name].load()
    except ImportError as missing:
        distribution = offers[name].dist
        extras = distribution.metadata.get_all("Provides-Extra", []) if distribution else []
        extra = f"[{name}]" if name in extras else ""
        raise UnsupportedError(
            "SpecChain", f"{name!r} cannot be loaded ({missing})", "its packages", f"pip install 'kernelproof{extra}'"
        ) from missing


def functions_of(module: ModuleType) -> Perform:
    def perform(operator: Any, *args: Any, **kwargs: Any) -> Any:
        function = getattr(module, operator.__name__, None)
        if function is None:
            raise UnsupportedError(
                module.__name__, f"it has no {operator.__name__}", "a function of that name", "Define it there."
            )
        return function(*args, **kwargs)

    return perform

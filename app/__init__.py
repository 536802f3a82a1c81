"""The reference standard for CNN operators: specifications to read, kernels proven equal to them, a kit to prove yours.

The specifications are `kernelproof.spec`, the kernels `kernelproof.kernels`, what is built from them
`kernelproof.models`, the laws `kernelproof.proofs`. The names below are the front door, imported when they are used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernelproof.models import CNN2Config, CNN2Spec
    from kernelproof.proofs import verify
    from kernelproof.pytest_plugin import proof
    from kernelproof.spec import Conv2d, Flatten, Linear, MaxPool2d, ReLU, SpecChain

__all__ = ["CNN2Config", "CNN2Spec", "Conv2d", "Flatten", "Linear", "MaxPool2d", "ReLU", "SpecChain", "proof", "verify"]

_HOMES = {
    "kernelproof.spec": {"Conv2d", "Flatten", "Linear", "MaxPool2d", "ReLU", "SpecChain"},
    "kernelproof.models": {"CNN2Config", "CNN2Spec"},
    "kernelproof.proofs": {"verify"},
    "kernelproof.pytest_plugin": {"proof"},
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'kernelproof' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

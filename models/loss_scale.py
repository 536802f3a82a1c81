"""Mixed precision: layers in float16, whose small gradients are saved by computing them on a larger scale."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernelproof.spec import cross_entropy, cross_entropy_dlogits
from kernelproof.spec.chain import SpecChain
from kernelproof.spec.errors import ParameterError
from kernelproof.spec.parameters import Parameters
from kernelproof.spec.window import whole

from .host import on_host


@dataclass(frozen=True)
class LossScale:
    """By how much the loss is multiplied before its gradients are taken in float16, and divided out after.

    `2**exponent`: a power of two, so that scaling alone rounds nothing. A step in which a gradient overflows is skipped
    and the scale halved; after `interval` steps without one it is doubled. Raises ParameterError.
    Source: Micikevicius et al., Mixed precision training, arXiv 1710.03740; PyTorch `torch.amp.GradScaler`.
    """

    exponent: int = 16
    interval: int = 2000
    steps: int = 0
    """Taken at this scale, none of them skipped."""

    def __post_init__(self) -> None:
        for name, least in (("exponent", 0), ("interval", 1), ("steps", 0)):
            whole("LossScale", name, getattr(self, name), least)
        if self.exponent > 126:
            raise ParameterError("LossScale", f"exponent={self.exponent}", "126 or less", "float32 ends at 2**128.")

    @property
    def factor(self) -> float:
        """What the loss is multiplied by."""
        return 2.0**self.exponent

    def after(self, finite: bool) -> "LossScale":
        """The scale of the next step, when all gradients of this one were finite, or were not."""
        if not finite:
            return LossScale(max(self.exponent - 1, 0), self.interval)
        if self.steps + 1 < self.interval or self.exponent == 126:
            return LossScale(self.exponent, self.interval, self.steps + 1)
        return LossScale(self.exponent + 1, self.interval)


def in_float16(
    chain: SpecChain, parameters: Parameters, images: Any, target: Any, scale: LossScale
) -> tuple[Any, float, Mapping[str, Any]]:
    """Logits, loss and the parameters' gradients of a batch, with layers that see float16 and nothing else.

    The loss, and what becomes of gradients once they are divided, stay in the parameters' own scalar type.
    """
    dtype = parameters.dtype
    logits, backward = chain.vjp(parameters.astype(np.float16), images.astype(np.float16), of_x=False)
    logits = logits.astype(dtype)
    loss = float(on_host(chain.perform(cross_entropy, logits, target)))
    with np.errstate(over="ignore", invalid="ignore"):  # An overflow is what the scale is there to find.
        dlogits = (chain.perform(cross_entropy_dlogits, logits, target) * dtype.type(scale.factor)).astype(np.float16)
        scaled = backward(dlogits).parameters
    return logits, loss, {key: each.astype(dtype) / dtype.type(scale.factor) for key, each in scaled.items()}

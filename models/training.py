"""Training a chain by stochastic gradient descent, in terms of the operators: it runs wherever the chain does."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernelproof.spec import cross_entropy, cross_entropy_dlogits, sgd
from kernelproof.spec.chain import SpecChain
from kernelproof.spec.errors import KernelproofError, ParameterError, ShapeError
from kernelproof.spec.parameters import Parameters
from kernelproof.spec.window import MOST, MOST_SEED, whole

from .host import on_host
from .loss_scale import LossScale, in_float16


class DivergenceError(KernelproofError):
    """The loss is no longer a finite number."""


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast to learn. Raises ParameterError.

    With the defaults a CNN2 of 16 and 32 filters reads 98.2 % of the bundled digits held out on average, and at least
    97.2 %, over 12 seeds and 4 splits.
    """

    epochs: int = 15
    batch_size: int = 32
    learning_rate: float = 0.05
    momentum: float = 0.9
    seed: int = 0
    loss_scale: LossScale | None = None
    """Mixed precision: layers see float16 copies of images and parameters, gradients are taken at this scale.

    For chains on the specification or compiled for CUDA: the CPU kernels take float32 and float64."""

    def __post_init__(self) -> None:
        for name, least, most in (("epochs", 1, MOST), ("batch_size", 1, MOST), ("seed", 0, MOST_SEED)):
            whole("TrainConfig", name, getattr(self, name), least, most)
        for name in ("learning_rate", "momentum"):
            rate = getattr(self, name)
            if not 0 <= rate < math.inf:
                raise ParameterError("TrainConfig", f"{name}={rate!r}", "a finite number >= 0", "Pass 0 or more.")


@dataclass(frozen=True)
class Progress:
    """Where training stands after one step: loss and accuracy are the batch's own, before the step was taken.

    `skipped` if a gradient overflowed in float16, and so no step was taken.
    """

    epoch: int
    step: int
    steps: int
    loss: float
    accuracy: float
    parameters: Parameters
    skipped: bool = False


def train(
    chain: SpecChain, parameters: Mapping[str, Any], images: Any, labels: Any, config: TrainConfig = TrainConfig()
) -> Iterator[Progress]:
    """Learn the labels `[n]` of the images `[n,c,h,w]`: each epoch sees all of them once, in an order drawn by seed.

    Step by step, so that the caller may show, keep or stop it; the last progress holds the result. The same seed gives
    the same bits. Raises ShapeError, DtypeError, ParameterError, DivergenceError.
    """
    _check_labelled("train", images, labels)
    return _steps(chain, chain.parameters(parameters), images, labels, config)


def _steps(
    chain: SpecChain, parameters: Parameters, images: Any, labels: Any, config: TrainConfig
) -> Iterator[Progress]:
    velocity: Mapping[str, Any] = {key: array * 0 for key, array in parameters.items()}
    order, starts = np.random.default_rng(config.seed), range(0, len(images), config.batch_size)
    step, scale = 0, config.loss_scale
    for epoch in range(1, config.epochs + 1):
        shuffled = order.permutation(len(images))
        for start in starts:
            batch = shuffled[start : start + config.batch_size]
            target = labels[batch]
            if scale is None:
                logits, loss, gradients = _in_full(chain, parameters, images[batch], target)
            else:
                logits, loss, gradients = in_float16(chain, parameters, images[batch], target, scale)
            step += 1
            if not math.isfinite(loss):
                raise DivergenceError(
                    "train", f"the loss of step {step} is {loss}", "a finite loss",
                    f"Lower learning_rate={config.learning_rate}.",
                )  # fmt: skip
            skipped = scale is not None and not _are_finite(gradients)
            if scale is not None:
                if skipped and scale.exponent == 0:
                    raise DivergenceError(
                        "train", f"gradients of step {step} overflow float16 without any scale", "finite gradients",
                        "Train without loss_scale.",
                    )  # fmt: skip
                scale = scale.after(not skipped)
            if not skipped:
                parameters, velocity = _moved(chain, parameters, gradients, velocity, config)
            accuracy = float(np.mean(on_host(logits).argmax(axis=1) == target))
            yield Progress(epoch, step, config.epochs * len(starts), loss, accuracy, parameters, skipped)


def _in_full(
    chain: SpecChain, parameters: Parameters, images: Any, target: Any
) -> tuple[Any, float, Mapping[str, Any]]:
    """Logits, loss and the parameters' gradients of a batch."""
    logits, backward = chain.vjp(parameters, images, of_x=False)
    loss = float(on_host(chain.perform(cross_entropy, logits, target)))
    return logits, loss, backward(chain.perform(cross_entropy_dlogits, logits, target)).parameters


def _are_finite(gradients: Mapping[str, Any]) -> bool:
    return all(np.isfinite(on_host(each)).all() for each in gradients.values())


def _moved(
    chain: SpecChain, parameters: Parameters, gradients: Mapping[str, Any], velocity: Mapping[str, Any],
    config: TrainConfig,
) -> tuple[Parameters, Mapping[str, Any]]:  # fmt: skip
    """Parameters and velocity after a step."""
    rates = {"learning_rate": config.learning_rate, "momentum": config.momentum}
    moved = {
        key: chain.perform(sgd, parameter, gradients[key], velocity[key], **rates)
        for key, parameter in parameters.items()
    }
    return (
        chain.parameters({key: parameter for key, (parameter, _) in moved.items()}),
        {key: each for key, (_, each) in moved.items()},
    )


@dataclass(frozen=True)
class Evaluation:
    """Mean loss, share of right answers, and the answer to every image."""

    loss: float
    accuracy: float
    predictions: np.ndarray


def evaluate(
    chain: SpecChain, parameters: Mapping[str, Any], images: Any, labels: Any, batch_size: int = 256
) -> Evaluation:
    """How well the chain reads images `[n,c,h,w]` with labels `[n]`. Raises ShapeError, DtypeError, ParameterError."""
    _check_labelled("evaluate", images, labels)
    batches = [slice(start, start + batch_size) for start in range(0, len(images), batch_size)]
    logits = [chain.forward(parameters, images[batch]) for batch in batches]
    losses = [
        float(on_host(chain.perform(cross_entropy, of_batch, labels[batch])))
        for of_batch, batch in zip(logits, batches, strict=True)
    ]
    predictions = np.concatenate([on_host(of_batch).argmax(axis=1) for of_batch in logits])
    loss = np.average(losses, weights=[len(labels[batch]) for batch in batches])
    return Evaluation(float(loss), float(np.mean(predictions == labels)), predictions)


def _check_labelled(what: str, images: Any, labels: Any) -> None:
    if len(images) != len(labels) or len(images) == 0:
        raise ShapeError(
            what,
            f"{len(images)} images with {len(labels)} labels",
            "one label for each of 1 image or more",
            "Match them.",
        )

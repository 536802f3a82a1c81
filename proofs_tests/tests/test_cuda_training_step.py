"""A training step as one graph, in float32 and through half precision, on a GPU with PyTorch."""

import re
from typing import Any

import numpy as np
import pytest
from test_cuda_recorded import on_a_gpu

from kernelproof.kernels.cuda.host.graph import TrainingStep
from kernelproof.proofs.bounds import unit_roundoff
from kernelproof.spec import Conv2d, Flatten, KernelproofError, Linear, MaxPool2d, ReLU, ShapeError, SpecChain


def step_of(chain: SpecChain, parameters: Any, x: Any, target: Any, **options: Any) -> Any:
    return TrainingStep(chain.compile("cuda"), parameters, x, target, learning_rate=0.5, momentum=0.9, **options)


def cnn() -> tuple[SpecChain, Any, Any, Any]:
    torch = pytest.importorskip("torch")
    layers = Conv2d(1, 4, 3, padding=1), ReLU(), MaxPool2d(2), Flatten(), Linear(64, 3)
    chain = SpecChain(*layers, input="n 1 8 8")
    parameters = {key: torch.from_numpy(np.asarray(each)).cuda() for key, each in chain.initialise(0).items()}
    generator = torch.Generator().manual_seed(0)
    x, target = torch.randn(32, 1, 8, 8, generator=generator), torch.randint(0, 3, (32,), generator=generator)
    return chain, parameters, x.cuda(), target.cuda()


def linear() -> tuple[SpecChain, Any, Any, Any]:
    """One image of ones, three classes; the first is so likely that the others' gradients are below float16's least."""
    torch = pytest.importorskip("torch")
    chain = SpecChain(Flatten(), Linear(4, 3), input="n 1 2 2")
    bias = torch.tensor([18.0, 0, 0], device="cuda")
    parameters = {"fc1.weight": torch.zeros(3, 4, device="cuda"), "fc1.bias": bias}
    return chain, parameters, torch.ones(1, 1, 2, 2, device="cuda"), torch.zeros(1, dtype=torch.int64, device="cuda")


@on_a_gpu
@pytest.mark.parametrize("half", [None, "float16", "bfloat16"])
def test_the_loss_falls(half: str | None) -> None:
    torch = pytest.importorskip("torch")
    chain, parameters, x, target = cnn()
    step = step_of(chain, parameters, x, target, half=half and getattr(torch, half))
    losses = [float(step(x, target)) for _ in range(30)]
    assert losses[-1] < losses[0] / 2


@on_a_gpu
def test_gradients_too_small_for_float16_are_saved() -> None:
    torch = pytest.importorskip("torch")
    chain, parameters, x, target = linear()
    step = step_of(chain, parameters, x, target, half=torch.float16)
    step(x, target)
    got = step.velocity["fc1.bias"].cpu().double().numpy()[1:]
    full = step_of(chain, parameters, x, target)
    full(x, target)
    in_float32 = full.velocity["fc1.bias"].cpu().double().numpy()[1:]
    # The same numbers, rounded once to float16: a power of two comes and goes exactly.
    assert (abs(got - in_float32) <= unit_roundoff("float16") * abs(in_float32)).all()
    assert (got > 0).all()
    assert float(step.loss_scale) == 2.0**16


@on_a_gpu
def test_a_step_that_overflows_changes_the_scale_alone() -> None:
    torch = pytest.importorskip("torch")
    chain, parameters, x, target = cnn()
    step = step_of(chain, parameters, x, target, half=torch.float16)
    step.loss_scale.fill_(2.0**40)
    step(x, target)
    assert float(step.loss_scale) == 2.0**39
    assert all(torch.equal(step.parameters[key], each) for key, each in parameters.items())
    assert not any(each.any() for each in step.velocity.values())


@on_a_gpu
def test_an_interval_without_overflow_doubles_the_scale() -> None:
    torch = pytest.importorskip("torch")
    chain, parameters, x, target = cnn()
    step = step_of(chain, parameters, x, target, half=torch.float16)
    step.loss_scale.fill_(2.0)
    for _ in range(step.INTERVAL - 1):
        step(x, target)
    assert float(step.loss_scale) == 2
    step(x, target)
    assert float(step.loss_scale) == 4


@on_a_gpu
def test_the_scale_stays_a_number() -> None:
    torch = pytest.importorskip("torch")
    chain, parameters, x, target = linear()
    step = step_of(chain, parameters, x, target, half=torch.bfloat16)
    step.loss_scale.fill_(2.0**126)
    step._since.fill_(step.INTERVAL - 1)
    step(x, target)
    assert float(step.loss_scale) == 2.0**126


@on_a_gpu
def test_what_cannot_be_recorded_is_refused() -> None:
    torch = pytest.importorskip("torch")
    chain, parameters, x, target = cnn()
    for arrays, options in (
        ((parameters, x.cpu(), target), {}),
        ((parameters, x, target.cpu()), {}),
        (({**parameters, "conv1.bias": parameters["conv1.bias"].cpu()}, x, target), {}),
        ((parameters, x, target), {"half": torch.float64}),
    ):
        with pytest.raises(KernelproofError, match="TrainingStep"):
            step_of(chain, *arrays, **options)
    with pytest.raises(KernelproofError, match="TrainingStep"):
        TrainingStep(chain, parameters, x, target, learning_rate=0.5, momentum=0.9)


@pytest.mark.parametrize(
    ("x", "target", "came"),
    [
        ((1, 1, 8, 8), (32,), "x of shape (1, 1, 8, 8)"),
        ((32, 1, 8, 8), (1,), "target of shape (1,)"),
        ((33, 1, 8, 8), (33,), "x of shape (33, 1, 8, 8)"),
    ],
)
def test_a_batch_of_another_shape_is_refused_before_it_is_copied(x: Any, target: Any, came: str) -> None:
    step: Any = object.__new__(TrainingStep)  # Recorded, as far as a batch is looked at: this needs no GPU.
    step._x, step._target = np.zeros((32, 1, 8, 8)), np.zeros(32)
    with pytest.raises(ShapeError, match=re.escape(f"TrainingStep: {came}; needs ")):
        step(np.zeros(x), np.zeros(target))

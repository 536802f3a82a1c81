"""Arrays of half precision: widened exactly, computed with in float32, rounded once. On a GPU; compiled without one."""

import importlib
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from test_cuda_ptx import compiler, compilers_are_installed, types
from test_cuda_recorded import cnn, drawn, on_a_gpu, play

from kernelproof import kernels, spec
from kernelproof.proofs.drawing import problems

HALVES = ("float16", "bfloat16")


@pytest.mark.skipif(not compilers_are_installed(), reason="no libNVVM: pip install 'kernelproof[ptx]'")
@pytest.mark.parametrize("name", ["_from_float16", "_from_bfloat16", "_to_float16", "_to_bfloat16"])
def test_conversions_compile(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numba.cuda.dispatcher.get_current_device", lambda: SimpleNamespace(compute_capability=(8, 0)))
    wide, half = types.Array(types.float32, 4, "A"), types.Array(types.uint16, 4, "A")
    core = getattr(importlib.import_module("kernelproof.kernels.cuda.half"), name)
    ptx, _ = compiler.compile_ptx(core.py_func, (half, wide) if "from" in name else (wide, half), cc=(8, 0))
    assert not re.search(r"\b(atom|red)\.|\.f64\b", ptx)


def every(half: str) -> Any:
    """All 65,536 numbers of a half precision, and the type."""
    torch = pytest.importorskip("torch")
    kind = getattr(torch, half)
    return torch.arange(-(2**15), 2**15, device="cuda").to(torch.int16).view(kind), kind


def same(came: Any, right: Any) -> bool:
    """The same numbers, zeros' signs included, and NaN where NaN is."""
    numbers = ~right.isnan()
    equal = came.isnan() == ~numbers
    equal[numbers] = (came == right)[numbers] & (came.signbit() == right.signbit())[numbers]
    return bool(equal.all())


@on_a_gpu
@pytest.mark.parametrize("half", HALVES)
def test_every_number_is_taken_and_given_back_as_it_is(half: str) -> None:
    x, _ = every(half)
    for _ in range(3):
        y = kernels.relu_dx(x, x.abs() + 1)  # Lets all of them through.
        right = x.clone()
        right[(x.abs() + 1) <= 0] = 0
        assert y.dtype == x.dtype
        assert same(y, right)


@on_a_gpu
@pytest.mark.parametrize("half", HALVES)
def test_a_product_of_any_numbers_is_rounded_once(half: str) -> None:
    x, kind = every(half)
    import torch  # pyright: ignore[reportMissingImports]

    for factor in (1.0, 1.0009765625, 0.333, -1.5, 3e-5, 2000.0):
        weight = torch.full((1, 1), factor, device="cuda").to(kind)
        came = kernels.linear(x[:, None], weight)[:, 0]
        assert same(came, (x.float() * weight.float()[0] + 0).to(kind))  # The sum starts at zero.


@on_a_gpu
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("operator", [name for name in spec.OPERATORS if not name.startswith("cross_entropy")])
def test_an_operator_gives_what_float32_gives_rounded(operator: str, half: str) -> None:
    torch = pytest.importorskip("torch")
    kind, kernel = getattr(torch, half), getattr(kernels, operator.replace(".", "_"))

    def both(*args: Any, **kwargs: Any) -> Any:
        narrow = [torch.from_numpy(np.array(a)).cuda().to(kind) if isinstance(a, np.ndarray) else a for a in args]
        wide = [each.float() if isinstance(each, torch.Tensor) else each for each in narrow]
        return kernel(*narrow, **kwargs), kernel(*wide, **kwargs)

    @settings(
        max_examples=12, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )  # fmt: skip
    @given(problems(operator, "real", ("float32",)))
    def holds(problem: Any) -> None:
        arrays = problem.arrays()
        for _ in range(3):  # Performed, recorded, played.
            results = (each if isinstance(each, tuple) else (each,) for each in problem.call(both, arrays))
            for came, right in zip(*results, strict=True):
                assert came.dtype == (kind if right.dtype == torch.float32 else right.dtype)
                assert same(came, right.to(came.dtype)) if came.is_floating_point() else bool((came == right).all())

    holds()


@on_a_gpu
@pytest.mark.parametrize("half", HALVES)
def test_a_chain_rounds_its_results_alone(half: str) -> None:
    torch = pytest.importorskip("torch")
    chain, kind = cnn(), getattr(torch, half)
    for seed in range(4):
        parameters, x, dy = drawn(chain, seed)
        narrow = {key: each.to(kind) for key, each in parameters.items()}, x.to(kind), dy.to(kind)
        wide = {key: each.float() for key, each in narrow[0].items()}, narrow[1].float(), narrow[2].float()
        (y, gradients), (y_wide, gradients_wide) = play(chain, *narrow), play(chain, *wide)
        came = [y, *gradients.parameters.values(), gradients.x]
        right = [y_wide, *gradients_wide.parameters.values(), gradients_wide.x]
        assert all(same(one, other.to(kind)) for one, other in zip(came, right, strict=True))


@on_a_gpu
def test_nothing_is_promoted() -> None:
    torch = pytest.importorskip("torch")
    chain = cnn()
    parameters, x, dy = drawn(chain, 0)
    narrow = {key: each.half() for key, each in parameters.items()}
    for _ in range(3):
        for wrong in ((parameters, x.half()), (narrow, x), (narrow, x.bfloat16())):
            with pytest.raises(spec.DtypeError):
                chain.forward(*wrong)
        _, back = chain.vjp(narrow, x.half())
        for gradient in (dy, dy.bfloat16()):
            with pytest.raises(spec.DtypeError):
                back(gradient)
        back(dy.half())
        for one, other in ((x, x.half()), (x.half(), x.bfloat16())):
            with pytest.raises(spec.DtypeError):
                kernels.relu_dx(one, other)
    assert kernels.relu(torch.ones(3, device="cuda", dtype=torch.float16)).dtype == torch.float16

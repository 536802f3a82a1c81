"""`kernelproof plan` tells the planner's own decision, and measures nothing that is wrong."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernelproof.kernels.cpu.convolution import planner
from kernelproof.plan_command import plan
from kernelproof.proofs import LawBroken, Problem
from kernelproof.proofs.at_scale import worst_error
from kernelproof.spec import OPERATORS, KernelproofError, Window

SHAPES: dict[str, Any] = {"x": "2x16x9x8", "weight": "32x8x3x3"}


def told(capsys: pytest.CaptureFixture[str], operator: str = "conv2d", **options: Any) -> dict[str, Any]:
    assert plan(operator, **{**SHAPES, "groups": 2, **options}, json=Path("-")) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("operator", ["conv2d", "conv2d.dx", "conv2d.dweight"])
@pytest.mark.parametrize("precision", ["strict", "fast"])
def test_the_plan_is_the_planners_decision(operator: str, precision: Any, capsys: Any) -> None:
    found = told(capsys, operator, stride="2x1", padding="0x1x2x3", precision=precision)
    window = Window((3, 3), (2, 1), ((0, 1), (2, 3)))
    asked = planner.Problem(operator.replace(".", "_"), (2, 16, 9, 8), (32, 8, 3, 3), window, 2, "float32")
    decision = planner.decide(asked, precision)
    assert found["taken"] == decision.taken.name
    algorithms = found["algorithms"]
    assert {name: each["multiply_adds"] for name, each in algorithms.items() if not each["refused"]} == decision.costs
    assert {name: each["refused"] for name, each in algorithms.items() if each["refused"]} == decision.refused
    assert algorithms[found["taken"]]["workspace"] == decision.taken.workspace(asked)


def test_a_limit_refuses_what_needs_more(capsys: Any) -> None:
    by_workspace = sorted(each["workspace"] for each in told(capsys)["algorithms"].values() if not each["refused"])
    limited = told(capsys, workspace_limit=by_workspace[0])["algorithms"]
    assert [each["workspace"] for each in limited.values() if not each["refused"]] == by_workspace[:1]
    assert any(f"{by_workspace[-1]} bytes" in (each["refused"] or "") for each in limited.values())


def test_measuring_times_each_that_may_be_taken(capsys: Any) -> None:
    for each in told(capsys, measure=True)["algorithms"].values():
        assert (each["milliseconds"] is None) == (each["refused"] is not None)


def test_a_wrong_algorithm_is_refuted_and_not_timed(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    right = next(row for row in planner.ALGORITHMS if row.operator == "conv2d" and not row.needs)
    wrong = replace(right, name="wrong", run=lambda *arguments: right.run(*arguments) * np.float32(1.001))
    monkeypatch.setattr(planner, "ALGORITHMS", (*planner.ALGORITHMS, wrong))
    planner._decide.cache_clear()
    assert plan("conv2d", **SHAPES, groups=2, measure=True) == 1
    planner._decide.cache_clear()
    assert "conv2d at [n,k,p,q]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"x": "2x16x9"}, "--x 2x16x9"),
        ({"weight": "32x8x3xthree"}, "--weight 32x8x3xthree"),
        ({"padding": "1x2x3"}, "1 or 2 or 4 whole numbers"),
        ({"stride": "0"}, "stride"),
        ({"groups": 3}, "groups=3"),
        ({"x": "2x16x1x1"}, "does not fit"),
        ({"x": f"{2**31}x16x9x8"}, "--x"),
        ({"workspace_limit": 0}, "workspace_limit(0)"),
        ({"backend": "cuda", "measure": True}, "--measure"),
        ({"backend": "cuda", "groups": 3}, "groups=3"),
        ({"operator": "relu"}, "conv2d.dweight"),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_wrong_usage_says_what_is_wrong(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(KernelproofError) as refusal:
        plan(**{"operator": "conv2d", **SHAPES, "groups": 2, **wrong})
    assert named in str(refusal.value)


@pytest.mark.parametrize("operator", ["conv2d", "conv2d.dx", "conv2d.dweight"])
@pytest.mark.parametrize("images", [1, 2, 5])
def test_at_scale_an_error_in_the_last_image_is_found(operator: str, images: int) -> None:
    options = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}
    shapes = {"x": (images, 2, 4, 4), "weight": (3, 2, 3, 3)}
    problem = Problem(operator, shapes, options, (images, 3, 4, 4), "real")
    specification = OPERATORS[operator]

    def kernel(*arguments: Any, **options: Any) -> Any:
        return specification(*arguments, **options)

    def blind(*arguments: Any, **options: Any) -> Any:
        """As if the last image of dy, or of x in the forward, were zero."""
        first = arguments[0].copy()
        first[-1] = 0
        return specification(first, *arguments[1:], **options)

    assert worst_error(kernel, problem) <= 1
    with pytest.raises(LawBroken):
        worst_error(blind, problem)


def of_cuda(capsys: pytest.CaptureFixture[str], operator: str, **options: Any) -> dict[str, Any]:
    shapes = {"x": "32x64x56x56", "weight": "64x64x3x3", "padding": "1", "groups": 1}
    return told(capsys, operator, **{**shapes, "backend": "cuda", **options})


@pytest.mark.parametrize("operator", ["conv2d", "conv2d.dx", "conv2d.dweight"])
def test_the_launches_of_a_gpu_are_told_without_one(operator: str, capsys: Any) -> None:
    found = of_cuda(capsys, operator)
    assert found["workspace"] > 0
    assert any(each["shared"] > 48 * 1024 for each in found["launches"])  # A kernel that only Hopper has room for.
    assert of_cuda(capsys, operator, workspace_limit=found["workspace"]) == found
    limited = of_cuda(capsys, operator, workspace_limit=found["workspace"] - 1)
    assert limited["workspace"] == 0
    assert [each["shared"] for each in limited["launches"]] == [0]


def test_float64_takes_no_workspace_on_a_gpu(capsys: Any) -> None:
    found = of_cuda(capsys, "conv2d", dtype="float64")
    assert (found["workspace"], len(found["launches"])) == (0, 1)

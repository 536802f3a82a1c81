"""`verify`: its verdicts, its exit statuses, and the code that it prints."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernelproof import spec
from kernelproof.proofs import LAWS, Report, Result, verify
from kernelproof.proofs.hold import hold
from kernelproof.proofs.jobs import merge
from kernelproof.proofs.judging import LawBroken, declared, told
from kernelproof.proofs.problems import Problem
from kernelproof.proofs.render import markdown
from kernelproof.proofs.report import reproduction
from kernelproof.proofs.subject import subject_of
from kernelproof.report_page import report_page
from kernelproof.spec import OPERATORS, KernelproofError
from kernelproof.terminal import line


def test_the_specification_is_proven_with_less_than_one_in_a_billion_to_escape() -> None:
    report = verify(spec.conv2d.__call__, "conv2d", level="L1", examples=30)
    assert (report.verdict, report.exit_status) == ("proven", 0)
    assert all(result.escape is not None and result.escape <= 1e-9 for result in report.results)


def test_the_smallest_case_is_small() -> None:
    def ignores_dilation(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
        wrong: Any = options | {"dilation": (options["dilation"][0],) * 2}
        return spec.conv2d(x, weight, bias, **wrong)

    failure = verify(ignores_dilation, "conv2d", level="L1").failures[0].failure
    assert failure is not None
    assert "'dilation': (1, 2)" in failure.problem or "'dilation': (2, 1)" in failure.problem
    assert "'stride': (1, 1), 'padding': ((0, 0), (0, 0))" in failure.problem


def test_the_smallest_case_is_small_where_few_values_show_the_fault() -> None:
    def pads_with_zeros(x: Any, kernel_size: Any, *, padding: Any, **options: Any) -> Any:
        return spec.max_pool2d(np.pad(x, [(0, 0), (0, 0), *padding]), kernel_size, padding=0, **options)

    # A window of negative numbers does.
    for result in verify(pads_with_zeros, "max_pool2d", level=("L1", "L2", "L3"), supports="not ceil_mode").failures:
        assert result.failure is not None
        assert "shapes={'x': (1, 1, 1, 1)}" in result.failure.problem


def test_the_smallest_case_is_small_where_the_first_that_fails_is_long() -> None:
    def loses_a_remainder(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
        y = spec.conv2d(x, weight, bias, **options).copy()
        y[..., max(1, y.shape[3] // 4) * 4 :] = 0
        return y

    for result in verify(loses_a_remainder, "conv2d", level=("L1", "L2", "L3", "L4")).failures:
        assert result.failure is not None
        assert "shapes={'x': (1, 1, 1, 5), 'weight': (1, 1, 1, 1)}" in result.failure.problem


def test_unsupported_is_no_pass() -> None:
    def nothing(x: Any) -> Any:
        raise NotImplementedError

    # Twenty problems are tried for each that is asked for, since all are declined.
    report = verify(nothing, "relu", examples=5)
    assert (report.verdict, report.exit_status) == ("unsupported", 3)
    # It refuses bad input too, which alone is no proof.
    report = verify(nothing, "relu", level=("L1", "L9"), examples=5)
    assert {result.verdict for result in report.results} == {"unsupported", "proven"}
    assert report.verdict == "unsupported"


def test_a_kernel_may_leave_cases_out_and_is_judged_on_the_others() -> None:
    def square_strides_only(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
        if len(set(options["stride"])) > 1:
            raise NotImplementedError
        return spec.conv2d(x, weight, bias, **options)

    report = verify(square_strides_only, "conv2d", level="L1")
    assert report.verdict == "proven"
    assert report.results[0].unsupported > 0
    assert report.results[0].hit["stride_h != stride_w"] == 0


def test_a_report_says_why_problems_were_declined() -> None:
    def groups_of_one(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
        if options["groups"] > 1:
            raise NotImplementedError("it has no groups")
        return spec.conv2d(x, weight, bias, **options)

    [by_itself] = verify(groups_of_one, "conv2d", level="L2", examples=20).results
    [declared] = verify(spec.conv2d.__call__, "conv2d", level="L2", examples=20, supports="groups == 1").results
    [all_of_it] = verify(spec.conv2d.__call__, "conv2d", level="L2", examples=20).results
    assert (by_itself.declined, declared.declined, all_of_it.declined) == (
        "it has no groups", "it is declared for groups == 1", "",
    )  # fmt: skip


def test_the_same_seed_draws_the_same_problems() -> None:
    runs = [verify(spec.relu.__call__, "relu", seed=7, examples=20).as_json()["results"] for _ in range(2)]
    assert [{**each, "seconds": 0} for each in runs[0]] == [{**each, "seconds": 0} for each in runs[1]]


def test_a_report_prints_as_what_there_is_to_know() -> None:
    report = verify(lambda x: x + 1, "relu", level="L1", examples=5)
    assert "refuted" in str(report)
    assert "check('equals_the_specification_on_whole_numbers', kernel, problem)" in str(report)
    assert len(str(report)) < 4000


def test_the_report_is_json() -> None:
    report = verify(spec.linear.__call__, "linear", examples=10)
    assert json.loads(json.dumps(report.as_json()))["verdict"] == "proven"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"op": "conv3d"}, "conv3d"),
        ({"op": None}, "op"),
        ({"op": "relu", "level": "L99"}, "L99"),
        ({"op": "relu", "examples": 0}, "examples=0"),
        ({"op": "relu", "time_limit": float("nan")}, "time_limit=nan"),
        ({"op": "relu", "time_limit": float("inf")}, "time_limit=inf"),
        ({"op": "relu", "supports": "x_shape[7] == 1"}, "raises IndexError: tuple index out of range"),
        ({"op": "relu", "supports": "stride == 1"}, "only the names x_shape, dtype"),
    ],
)
def test_wrong_usage_is_told(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(spec.ParameterError, match=named):
        verify(spec.relu.__call__, **arguments)


def test_printed_code_shows_the_failure_again(tmp_path: Path) -> None:
    module = tmp_path / "broken_kernel.py"
    module.write_text("import numpy as np\n\ndef relu(x):\n    return np.where(x > 0, x, np.zeros_like(x))\n")
    program = (
        "from broken_kernel import relu; from kernelproof import verify; from kernelproof.proofs.report import *; "
    )
    program += "report = verify(relu, 'relu', level='L4'); print(reproduction(report.failures[0], report))"
    code = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    again = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "LawBroken: relu at index" in again.stderr
    assert "the specification nan" in again.stderr


def test_a_proven_law_has_no_reproduction() -> None:
    report = verify(spec.relu.__call__, "relu", level="L1", examples=5)
    assert reproduction(report.results[0], report) == ""


def test_a_backend_is_proven_on_proven_shape_arithmetic() -> None:
    report = verify("cpu", level="L0")
    assert (report.verdict, {result.operator for result in report.results}) == ("proven", {"sizes"})
    assert verify(spec.relu.__call__, "relu", level="L0").exit_status == 3


def test_the_cuda_backend_is_held_to_the_class_that_its_precision_promises() -> None:
    subject = subject_of("cuda", precision="fast")
    assert subject.precision == "f16x3"
    assert subject.dtypes == ("float32",)
    assert {name for name in OPERATORS if name.split(".")[0] in ("conv2d", "linear") and "dbias" not in name} == set(
        subject.functions
    )
    # What a certificate keeps makes the same subject again.
    again = subject_of("cuda", precision=subject.declared["precision"])
    assert (again.name, again.precision, set(again.functions)) == ("cuda", "f16x3", set(subject.functions))


@pytest.mark.parametrize(("backend", "op"), [("cpu", None), ("cuda", "relu")])
def test_a_backend_that_promises_no_class_by_a_precision_says_so(backend: str, op: str | None) -> None:
    with pytest.raises(KernelproofError, match="precision="):
        subject_of(backend, op, precision="tf32")


def test_what_a_kernel_raises_is_told_apart_from_what_judging_it_raises() -> None:
    def raises(x: Any) -> Any:
        raise ValueError("mine")

    problem = Problem("relu", {"x": (2,)}, {}, (2,), "whole")
    for function, said in (
        (lambda: declared(raises)(1), "relu: the kernel raised ValueError: mine"),
        (lambda: raises(1), "relu: what the kernel gave could not be judged: ValueError: mine"),
    ):
        with pytest.raises(ValueError, match="mine") as caught:
            function()
        assert str(told(problem, caught.value)) == said


def test_nobody_else_is_held_to_the_bound_of_this_project_s_planner() -> None:
    class Named:
        name = "cpu"

        def __call__(self, *arrays: Any, **options: Any) -> Any:
            return spec.conv2d(*arrays, **options)

    assert subject_of("cpu", "conv2d").rounds_as is not None
    assert subject_of(Named(), "conv2d").rounds_as is None


def test_where_the_planner_takes_winograd_its_class_decides_and_the_report_says_so() -> None:
    shapes = {"x": (2, 33, 8, 8), "weight": (33, 33, 3, 3)}
    options = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}
    problem = Problem("conv2d", shapes, options, (2, 33, 8, 8), "mantissa")
    kernel, law = subject_of("cpu").kernel("conv2d"), LAWS["keeps_every_bit_of_the_significand"]
    assert law.check(kernel, problem).rounded_as == "winograd2"
    with pytest.raises(LawBroken) as broken:
        law.check(replace(kernel, rounds_as=None), problem)
    assert broken.value.problem == problem
    result = hold(law, subject_of("cpu", "conv2d"), "conv2d", 1, 0, known=[problem])
    assert result.rounded_as["winograd2"] > 0
    assert f"{result.rounded_as['winograd2']} of them with the numbers and bound of winograd2" in line(result)
    report = Report("cpu", 0, 100, (result,), {"dtypes": ["float32"]})
    assert "of winograd2" in markdown(report)
    assert "of winograd2" in report_page(report)
    assert merge(result, result).rounded_as["winograd2"] == 2 * result.rounded_as["winograd2"]


def test_what_was_unset_is_unset_for_kernels_too(tmp_path: Path) -> None:
    (tmp_path / "asks.py").write_text(
        "import os\nfrom kernelproof import spec\n\n"
        "def relu(x):\n    return spec.relu(x) * ('KERNELPROOF_TEST_MARK' not in os.environ)\n"
    )
    (tmp_path / "script.py").write_text(
        "import os, asks\nfrom kernelproof import verify\n"
        "for change in (lambda: os.environ.update(KERNELPROOF_TEST_MARK='1'), os.environ.clear):\n"
        "    change()\n    print(verify(asks.relu, 'relu', level='L1', examples=2, time_limit=60).verdict)\n"
    )
    command = [sys.executable, "script.py"]
    came = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert came.stdout.split() == ["refuted", "proven"]


def test_a_case_that_needs_an_earlier_call_says_so(tmp_path: Path) -> None:
    (tmp_path / "stuck.py").write_text(
        "from kernelproof import spec\n\nbusy = []\n\n"
        "def conv2d(x, weight, bias=None, **options):\n"
        "    if busy:\n        return spec.conv2d(x, weight, bias, **options) * 0\n"
        "    busy.append(x)\n    if options['groups'] > 1:\n        raise NotImplementedError\n"
        "    busy.clear()\n    return spec.conv2d(x, weight, bias, **options)\n\n"
        "def always(x, weight, bias=None, **options):\n    return spec.conv2d(x, weight, bias, **options) * 0\n"
    )
    for name, says in (("stuck:conv2d", True), ("stuck:always", False)):
        command = [sys.executable, "-m", "kernelproof", "verify", name, "--op", "conv2d", "--level", "L1"]
        came = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (came.returncode, "not as the first call of a new process" in came.stdout) == (1, says)
        pasted = re.search(r"^from kernelproof.proofs import.*?^check\(.*?\)$", came.stdout, re.DOTALL | re.MULTILINE)
        assert pasted
        assert ("after=earlier" in pasted[0]) == says
        again = subprocess.run(
            [sys.executable, "-c", pasted[0]], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert "LawBroken: conv2d at" in again.stderr
        replayed = [sys.executable, "-m", "kernelproof", "replay"]
        assert subprocess.run(replayed, cwd=tmp_path, capture_output=True, check=False).returncode == 1


def _one_pixel_over(x: Any, weight: Any, bias: Any = None, **options: Any) -> Any:
    y = spec.conv2d(x, weight, bias, **options).copy()
    n, _, p, q = y.shape
    if n * p * q > 96 and n * p * q % 96 == 1:
        y[-1, :, -1, -1] = 0
    return y


def _past_256_filters(dy: Any, weight: Any, x_shape: Any, **options: Any) -> Any:
    if weight.shape[0] // options["groups"] > 256:
        dy = np.concatenate((dy[:, :256], 0 * dy[:, 256:]), axis=1)
    return spec.conv2d_dx(dy, weight, x_shape, **options)


@pytest.mark.parametrize(("kernel", "op"), [(_one_pixel_over, "conv2d"), (_past_256_filters, "conv2d.dx")])
def test_what_is_wrong_past_a_block_or_in_the_last_tile_is_found(kernel: Any, op: str) -> None:
    assert verify(kernel, op, level="L1").verdict == "refuted"


@pytest.mark.parametrize(
    ("rounded", "told"),
    [
        (lambda x: x.astype(np.float16).astype(np.float32), "computed in TF32 or fp16"),
        (lambda x: _cut(x, 11), "computed in TF32 or fp16"),
        (lambda x: _cut(x, 8), "computed in bf16"),
        (lambda x: _cut(x, 21), "computed in 3xTF32"),
    ],
)
@pytest.mark.parametrize("precision", [None, "fp32"])
def test_the_class_of_a_kernel_that_drops_bits_is_named(rounded: Any, told: str, precision: str | None) -> None:
    def kernel(x: Any, weight: Any, bias: Any = None, **options: Any) -> Any:
        return spec.conv2d(rounded(x), rounded(weight), bias, **options)

    [result] = verify(kernel, "conv2d", level="L2", examples=20, precision=precision).results
    assert result.failure is not None
    assert told in result.failure.message


def test_bfloat16_is_no_tf32_where_tf32_is_declared() -> None:
    def kernel(x: Any, weight: Any, bias: Any = None, **options: Any) -> Any:
        return spec.conv2d(_cut(x, 8), _cut(weight, 8), bias, **options)

    [result] = verify(kernel, "conv2d", level="L2", examples=20, precision="tf32").results
    assert result.failure is not None
    assert "computed in bf16" in result.failure.message


def _cut(x: np.ndarray, bits: int) -> np.ndarray:
    """The number with so many bits of its significand, the others zero."""
    return (np.ascontiguousarray(x).view(np.uint32) & np.uint32(2**32 - 2 ** (24 - bits))).view(np.float32)


@pytest.mark.parametrize("time_limit", [None, 60.0])
def test_a_kernel_that_raises_is_refuted(time_limit: float | None) -> None:
    def raises(x: Any) -> Any:
        raise ValueError("mine")

    failure = verify(raises, "relu", level="L1", examples=2, time_limit=time_limit).failures[0].failure
    assert failure is not None
    assert failure.message == "relu: the kernel raised ValueError: mine"


def test_of_several_operators_the_wrong_one_shows_at_the_first_level() -> None:
    seen: list[Result] = []
    verify(Halves(), "linear", examples=5, progress=seen.append)
    assert [each.level for each in seen] == sorted(each.level for each in seen)
    assert next(each.operator for each in seen if each.failure) == "linear.dweight"


class Halves:
    """A linear layer whose gradient in the weight is half of what it should be."""

    def forward(self, x: Any, weight: Any, bias: Any = None) -> Any:
        self.x, self.weight = x, weight
        return spec.linear(x, weight, bias)

    def backward(self, dy: Any) -> Any:
        return dy @ self.weight, (dy.T @ self.x) / 2, dy.sum(axis=0)


def test_the_smallest_case_of_an_operator_is_the_one_to_paste() -> None:
    def fails_when_long_or_at_one_element(x: Any) -> Any:
        y = spec.relu(x)
        if x.size > 60 or np.isnan(x).any():
            y = np.array(y)
            y.reshape(-1)[:1] = 7
        return y

    report = verify(fails_when_long_or_at_one_element, "relu", level=("L1", "L4"))
    whole, special = (each.failure for each in report.failures if "special" in each.law or "whole" in each.law)
    assert whole is not None
    assert special is not None
    assert special.elements < 60 < whole.elements
    [smallest] = report.smallest.values()
    assert smallest.failure is special
    assert report.shown[0] is smallest
    written = report.as_json()
    assert written["smallest"] == {"relu": smallest.law}
    [again] = Report.from_json(written).smallest.values()
    assert again.failure is not None
    assert (again.law, again.failure.elements) == (smallest.law, special.elements)

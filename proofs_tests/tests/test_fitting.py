"""A kernel that takes little is held to as many problems as one that takes all: they are made to fit what it takes."""

import numpy as np
import pytest
from drawn import drawn

from kernelproof import spec, verify
from kernelproof.proofs.fitting import PLAIN, fitted
from kernelproof.proofs.manners import ALIASED
from kernelproof.proofs.neighbours import legal, of_one_shape
from kernelproof.proofs.subject import subject_of

NARROW = {
    "conv2d": "groups == 1 and weight_shape[2:] == (3, 3) and stride == dilation == (1, 1) "
    "and padding == ((1, 1), (1, 1))",
    "conv2d.dx": "groups == x_shape[1] and stride[0] == stride[1]",
    "max_pool2d": "not ceil_mode and kernel_size == stride == (2, 2) and not return_indices",
    "linear": "weight_shape[0] % 16 == 0 and weight_shape[1] % 16 == 0",
}


def conv2d(x, weight, bias=None, **options):
    return spec.conv2d(x, weight, bias, **options)


@pytest.mark.parametrize("operator", NARROW)
def test_every_problem_is_made_to_fit_and_to_stay_legal(operator: str):
    wanted = subject_of("cpu", operator, supports=NARROW[operator]).supports
    for problem in drawn(operator, "whole", 50):
        fitting = fitted(problem, wanted)
        assert fitting is not None
        assert wanted(fitting)
        assert legal(fitting)
        assert fitting == fitted(problem, wanted)


def test_what_need_not_be_plain_is_kept():
    for problem in drawn("conv2d", "whole", 50):
        fitting = fitted(problem, lambda each: each.options["groups"] == 1)
        assert fitting is not None
        assert {**fitting.options, "groups": 0} == {**problem.options, "groups": 0}
        assert fitting.shapes["weight"][2:] == problem.shapes["weight"][2:]


def test_nothing_fits_what_is_never_so():
    problem, *_ = drawn("max_pool2d", "whole", 50)
    assert fitted(problem, lambda each: False) is None
    assert set(PLAIN) < set(spec.OPS)


def test_a_narrow_kernel_is_held_to_as_many_problems_and_all_that_is_rare():
    report = verify(conv2d, "conv2d", level="L1", examples=100, supports=NARROW["conv2d"])
    [result] = report.results
    assert result.cases + result.vacuous >= 100
    assert result.unsupported
    assert result.hit["channels past 64"]
    assert result.hit["columns past 32 of filters past 16"]


def test_what_a_kernel_declines_for_another_reason_is_searched_for_too():
    def ungrouped(x, weight, bias=None, *, groups, **options):
        if groups != 1:
            raise NotImplementedError("groups")
        return spec.conv2d(x, weight, bias, **options)

    [result] = verify(ungrouped, "conv2d", level="L1", examples=30).results
    assert result.hit["columns past 32 of channels past 16"]
    assert not result.hit["groups > 1"]


def test_a_rare_fault_of_a_narrow_kernel_is_found():
    def first_channels_only(x, weight, bias=None, **options):
        return spec.conv2d(x[:, :64], weight[:, :64], bias, **options)

    report = verify(first_channels_only, "conv2d", level="L1", supports=NARROW["conv2d"])
    [failure] = report.failures
    assert "'weight': (1, 65, 3, 3)" in failure.failure.problem  # type: ignore[union-attr]


def test_a_law_that_leads_out_of_the_declaration_says_nothing():
    def halved(x, kernel_size, **options):
        return np.max([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=0)

    supports = f"{NARROW['max_pool2d']} and padding == ((0, 0), (0, 0)) and x_shape[2] % 2 == 0 and x_shape[3] % 2 == 0"
    report = verify(halved, "max_pool2d", level="L6", examples=20, supports=supports)
    verdicts = {result.law: result.verdict for result in report.results}
    assert verdicts["strides_keep_every_sth_output"] == "unsupported"


@pytest.mark.parametrize("operator", ALIASED)
def test_two_arrays_are_made_to_have_one_shape(operator: str):
    for problem in drawn(operator, "real", 50):
        made = of_one_shape(problem)
        first, second, *_ = made.array_shapes.values()
        assert first == second
        assert legal(made)


def test_every_operator_whose_arrays_can_have_one_shape_is_held_to_it():
    several = {name for name in spec.OPERATORS if len(drawn(name, "real", 50)[0].array_shapes) > 1}
    assert several == {*ALIASED, "cross_entropy", "cross_entropy.dlogits"}  # A target is no float.

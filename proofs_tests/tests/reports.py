"""Reports made by hand, with every verdict and everything a report can hold: no kernel has to run for them."""

from kernelproof.proofs import LAWS, Failure, Report, Result
from kernelproof.proofs.coverage import predicates
from kernelproof.proofs.judging import Differences
from kernelproof.proofs.report import RATIO_BINS
from kernelproof.proofs.verify import laws_of
from kernelproof.spec import OPERATORS

DECLARED = {"op": "conv2d", "dtypes": ["float32"], "supports": None, "precision": None, "layouts": {}}

HOSTILE = "</script><script>alert(1)</script> `````\n\x1b[31m & <b>"
"""A message that would break out of every format, were it not escaped."""


def result(operator: str, law: str, *, cases: int = 10, failure: Failure | None = None, unsupported: int = 0) -> Result:
    """What one law would report."""
    level = LAWS[law].level
    return Result(
        operator, law, level, LAWS[law].statement, cases, 0 if cases else 5 - unsupported, unsupported, 0.25,
        0.5 if level == "L3" else None, 4e-10 if level == "L1" else None,
        {name: which % 3 for which, name in enumerate(predicates(operator))}, failure,
        tuple(range(RATIO_BINS)) if level == "L3" else (),
    )  # fmt: skip


def failure(message: str = "conv2d at [n,k,p,q] = (0, 0, 0, 2): the kernel gives 1.0") -> Failure:
    """A last column that is wrong, once by NaN."""
    indices = tuple((n, k, p, 2) for n in range(2) for k in range(3) for p in range(4))
    errors = (float("nan"), *(2.0**-which for which in range(1, len(indices))))
    differences = Differences((2, 3, 4, 3), len(indices), indices, errors)
    values = {"got": 1.0, "expected": float("-inf"), "allowed": 0.0}
    return Failure(message, "Problem(operator='conv2d')", (0, 0, 0, 2), values, differences, "Problem(larger)")


def every_verdict(message: str = "conv2d is wrong") -> Report:
    """One law proven, one refuted, one unsupported, one vacuous."""
    laws = [law.name for law in laws_of("conv2d")]
    results = (
        result("conv2d", "rounds_within_the_derived_bound"),
        result("conv2d", laws[0], failure=failure(message)),
        result("conv2d", laws[1], cases=0, unsupported=5),
        result("conv2d", laws[-1], cases=0),
    )
    return Report("mykernels:conv2d", 7, 10, results, DECLARED, "0" * 64)


def whole_table(refuted: str = "") -> Report:
    """Every law of every operator, all proven but those of one."""
    results = (
        result(operator, law.name, failure=failure() if operator == refuted else None)
        for operator in OPERATORS
        for law in laws_of(operator)
    )
    return Report("cpu", 0, 100, tuple(results), {**DECLARED, "op": None}, "0" * 64)

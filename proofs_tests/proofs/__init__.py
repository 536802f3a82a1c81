"""Laws, generators, bounds and mutants: what it takes to prove a kernel equal to its specification, or refute it."""

if __name__ != "kernelproof.proofs":
    raise ImportError("import kernelproof.proofs, not proofs: the folder is the package's source")

from .laws import LAWS, Kernel, Law, LawBroken
from .problems import Problem, problems
from .report import Failure, Report, Result
from .verify import backend_kernel, check, verify

__all__ = [
    "LAWS",
    "Failure",
    "Kernel",
    "Law",
    "LawBroken",
    "Problem",
    "Report",
    "Result",
    "backend_kernel",
    "check",
    "problems",
    "verify",
]

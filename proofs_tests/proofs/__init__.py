"""Laws, generators, bounds and mutants: what it takes to prove a kernel equal to its specification, or refute it."""

if __name__ != "kernelproof.proofs":
    raise ImportError("import kernelproof.proofs, not proofs: the folder is the package's source")

from .drawing import problems
from .laws import LAWS, Kernel, Law, LawBroken
from .problems import Problem
from .report import Failure, Report, Result
from .subject import Subject, subject_of
from .verify import check, verify

__all__ = [
    "LAWS",
    "Failure",
    "Kernel",
    "Law",
    "LawBroken",
    "Problem",
    "Report",
    "Result",
    "Subject",
    "check",
    "problems",
    "subject_of",
    "verify",
]

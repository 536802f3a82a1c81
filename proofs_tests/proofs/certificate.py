"""A proof on file: what was proven about which source, checked again against the source there is now.

A certificate is no signature. It says what to repeat, and `verify` repeats it with the same seed.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from kernelproof.kernels.source import specification_hash
from kernelproof.spec import OPERATORS, ParameterError

from .report import Report, Result
from .subject import Subject, subject_of
from .verify import laws_for, verify

SCHEMA = "kernelproof.certificate/1"
"""Changes its number when a reader of the file would have to change."""


def certificate(report: Report) -> dict[str, Any]:
    """The certificate of a proof; raises ParameterError for a kernel that is not proven, or has no source to name."""
    if report.verdict != "proven":
        raise ParameterError("certificate", f"a kernel that is {report.verdict}", "a proven one", "Mend it first.")
    if report.source is None:
        raise ParameterError(
            "certificate", "a kernel without a source file", "one defined in a file", "Save it as a module."
        )
    return {
        "schema": SCHEMA,
        "kernel": report.kernel,
        "verdict": report.verdict,
        "precision": report.precision,
        "declared": dict(report.declared),
        "source": report.source,
        "specification": report.versions["kernelproof"],
        "seed": report.seed,
        "examples": report.examples,
        "versions": dict(report.versions),
        "theorems": [result.law for result in report.theorems],
        "operators": {
            operator: {
                "specification": specification_hash(operator),
                "laws": {result.law: _held(result) for result in report.laws if result.operator == operator},
            }
            for operator in report.operators
        },
    }


def _held(result: Result) -> dict[str, Any]:
    return {
        "level": result.level,
        "verdict": result.verdict,
        "problems": result.cases,
        "escape": result.escape,
        "worst_ratio": result.worst_ratio,
        **({"rounded_as": dict(result.rounded_as)} if result.rounded_as else {}),
    }


def read(text: str) -> dict[str, Any]:
    """The certificate that a file holds; raises ParameterError for anything else, and for another schema."""
    try:
        held = json.loads(text)
        schema = held["schema"]
    except (ValueError, TypeError, KeyError) as error:
        raise ParameterError("certificate", f"{error!r}", "a certificate", "Name another file.") from error
    if schema != SCHEMA:
        raise ParameterError("certificate", f"schema {schema!r}", repr(SCHEMA), "Write it anew with verify.")
    if damaged := [name for name, whole in _WHOLE.items() if not whole(held.get(name))]:
        raise ParameterError("certificate", f"no {' and '.join(damaged)}", "what verify wrote", "Write it anew.")
    return held


def _is(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind)


def _is_held(laws: Any) -> bool:
    return isinstance(laws, dict) and all(isinstance(law, dict) and "verdict" in law for law in laws.values())


_WHOLE: Mapping[str, Callable[[Any], bool]] = {
    "kernel": _is(str),
    "verdict": _is(str),
    "source": _is(str),
    "seed": _is(int),
    "examples": lambda examples: isinstance(examples, int) and examples > 0,
    "declared": lambda declared: isinstance(declared, dict) and isinstance(declared.get("dtypes"), list),
    "operators": lambda operators: (
        isinstance(operators, dict)
        and all(isinstance(each, dict) and "specification" in each for each in operators.values())
        and all(_is_held(each.get("laws")) for each in operators.values())
    ),
}
"""What a reader of the file relies on, by name."""


def certified(held: Mapping[str, Any], kernel: Any) -> Subject:
    """The subject that a certificate speaks of, as it is now; `kernel` is what its name stands for."""
    declared = held["declared"]
    try:
        return subject_of(kernel, name=held["kernel"], **{**declared, "dtypes": tuple(declared["dtypes"])})
    except TypeError as error:
        raise ParameterError("certificate", str(error), "what verify wrote", "Write it anew.") from error


def differences(held: Mapping[str, Any], subject: Subject) -> list[str]:
    """What is not as the certificate says: sources that have changed since, laws that it was not held to."""
    found = [] if held["verdict"] == "proven" else [f"{held['kernel']} was not proven but {held['verdict']}"]
    if held["source"] != subject.source:
        found.append(f"the source of {held['kernel']} has changed")
    found += [f"{operator} is not in it" for operator in subject.functions if operator not in held["operators"]]
    for operator, proven in held["operators"].items():
        if operator not in OPERATORS:
            found.append(f"{operator} is specified no more")
            continue
        if proven["specification"] != specification_hash(operator):
            found.append(f"the specification of {operator} has changed")
        broken = (law for law, came in proven["laws"].items() if came["verdict"] in ("refuted", "vacuous"))
        found += [f"{operator} did not hold: {law.replace('_', ' ')}" for law in broken]
        missing = {law.name for law in laws_for(subject, operator)} - set(proven["laws"])
        found += [f"{operator} was not held to: {law.replace('_', ' ')}" for law in sorted(missing)]
    return found


def again(held: Mapping[str, Any], subject: Subject, **how: Any) -> Report:
    """The proof repeated on the source there is now, with the certificate's seed and number of problems."""
    return verify(subject, examples=held["examples"], seed=held["seed"], **how)

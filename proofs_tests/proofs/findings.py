"""What is known where a framework's answer is not the specification's: documented, reported, or neither."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .report import Result


@dataclass(frozen=True)
class Finding:
    """One sentence about a law that falls for an operator of an adapter, and where to read of it.

    `operator` and `says` are patterns; `says` is one of the failure's message, so that another failure of the same law
    stays unexplained. `documented`: the framework promises other semantics, so it differs and is not wrong. Without a
    link it is not reported yet.
    """

    adapter: str
    operator: str
    law: str
    says: str
    sentence: str
    link: str = ""
    documented: bool = False


FINDINGS: Sequence[Finding] = ()


def finding_of(adapter: str, result: Result) -> Finding | None:
    """What is known about a refuted law, if anything."""
    message = result.failure.message if result.failure else ""
    return next(
        (
            each
            for each in FINDINGS
            if (each.adapter, each.law) == (adapter, result.law)
            and re.fullmatch(each.operator, result.operator)
            and re.search(each.says, message)
        ),
        None,
    )

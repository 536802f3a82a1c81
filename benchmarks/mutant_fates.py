"""What became of mutants, and why those that live are no faults."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Mutant:
    """A fault in a module: the `occurrence`-th place that cosmic-ray's operator finds, at a line."""

    module: str
    operator: str
    occurrence: int
    line: int


@dataclass(frozen=True)
class Fate:
    """What became of a mutant: the test that killed it, "" if it lives; `key` names the sources that this speaks of."""

    key: str
    mutant: Mutant
    was: str
    now: str
    killer: str
    seconds: float


@dataclass(frozen=True)
class Reason:
    """Why mutants that live are no faults: the module, what the changed line was and what it became, as patterns."""

    module: str
    was: str
    now: str
    why: str
    kind: Literal["equivalent", "speed"] = "equivalent"


REASONS: Sequence[Reason] = (
    Reason(
        "spec/.*", r"len\(\w+\.shape\) == 1", r"len\(\w+\.shape\) <= 1",
        "The axes are counted before: no array has fewer.",
    ),
    Reason(
        "spec/relu.py", "x.dtype == object", "x.dtype >= object",
        "numpy orders dtypes by what can be cast to what: none but object is at least object.",
    ),
    Reason(
        ".*/values.py", r"random\(chosen.shape\) < ", r"random\(chosen.shape\) <= ",
        "A real drawn at random equals no given one.",
    ),
    Reason(
        ".*/values.py", 'full != "bias"', '"bias" if full ',
        "Where the bias is full it is drawn as such, absent or not; the other names come after it.",
    ),
    Reason(
        ".*/problems.py", "^LONG = ", r"^LONG = 2\*\*16 (<<|\^|\|) 1$",
        "As many elements or more, past what kernels take in one go all the same.",
    ),
    Reason("spec/window.py", r"dilation\[axis\] == 1", r"dilation\[axis\] <= 1", "A dilation is 1 or more."),
    Reason("spec/pool.py", "fill=-1", r"fill=- ?2", "A mark for padding, of which the sign alone is asked."),
    Reason(
        "kernels/cpu/pool_plans.py", r"left \+ columns \+ 16", r"16 \* LANES",
        "A vector of windows reaches two vectors and a window beyond its row at most: 16 vectors are more than enough.",
    ),
    Reason(
        "kernels/cpu/softmax.py", r"carried\[0\]", r"carried\[ ?-1\]", "One value is carried: the first is the last.",
    ),
    Reason(
        "kernels/cpu/.*", r"cost = |k \* _EXPONENTIAL|_MEMORY \* _CHUNK|8 \* h \* w \* r \* s", "",
        "What a task costs decides how many threads and native calls it is done in; results depend on neither.",
        "speed",
    ),
    Reason(
        "kernels/cpu/relu.py", "chunks = ", r"x.size - _CHUNK",
        "More tasks than chunks: those beyond are empty.", "speed",
    ),
    Reason(
        "kernels/cpu/pool_plans.py", "^_STACK = ", "", "How many small images are pooled as one.", "speed",
    ),
    Reason(
        "kernels/cpu/unpool_vectors.py", "<= count - LANES", "> count - LANES",
        "No vector is then taken for a whole one: masks do all, as they do at the edges.", "speed",
    ),
    Reason(
        "kernels/cpu/(linear|convolution/pixel_gradient).py", "^_LARGE = |<= _SUMS$", "",
        "Which of two ways sums, each in an order of its own within the same bound.", "speed",
    ),
    Reason(
        ".*/pixel_(gradient|vectors).py", r"^(blocks = |found.append\()", "",
        "Which tile is the fastest: each is right.", "speed",
    ),
    Reason(
        ".*/sweep.py", "first_column - first", r"first_column (>>|<<|\+|\||\^) first",
        "A window begins in the padding or at the image, so that is 0; in the gradient it moves by 1, so the rest is.",
    ),
    Reason(
        "kernels/cpu/conv.py", r"\*, precision: Precision", "/, precision: Precision",
        "An entry is called by its contract alone: arrays by position, the precision by name.",
    ),
)  # fmt: skip
"""Found among those that lived; a pattern speaks of them alone, so none of those that are killed hides behind it."""


def explained(fate: Fate) -> Reason | None:
    """Why a mutant that lives is no fault, if it is known."""
    return next(
        (
            each
            for each in REASONS
            if re.fullmatch(each.module, fate.mutant.module)
            and re.search(each.was, fate.was)
            and re.search(each.now, fate.now)
        ),
        None,
    )

"""The page about mutants: what was tried, what lives and why, and how sure the total is."""

import math
from collections.abc import Mapping, Sequence, Set
from importlib.metadata import version
from statistics import NormalDist

from mutant_fates import REASONS, Fate, Mutant, Reason, explained

ENOUGH = 0.98
"""The share of mutants that tests have to notice, of those that differ from the module."""

HEAD = """# Generic mutants

Written by `python benchmarks/mutants.py` (`make mutants`), with cosmic-ray {cosmic_ray}. Faults planted anywhere in the
specifications, the generators, the bounds and the kernels, one at a time, each held to the module's own
tests: operators and comparisons exchanged, numbers moved by one, conditions negated, loops and decorators dropped.
Annotations are left out, the type checker has them. Each is compiled anew; nothing is taken from a cache.

{tried:,} of {every:,} mutants were tried, from each module so many as the table says, drawn at random from all of
its own. **{share:.1%}** of those that differ are killed (95 % confidence: {least:.1%} to {most:.1%}). {taught} of the
killed had lived until tests were written for them. Counted as alive, which is what to expect of mutants that are not
drawn yet, they leave **{fresh:.1%}** ({fresh_least:.1%} to {fresh_most:.1%}).

Each module counts by all the mutants that it has; the intervals are Wilson's for as many mutants as the unequal
drawing is worth ({worth:.0f}; Kish 1965)."""

KINDS = {
    "equivalent": "Mutants that give for every input what the module gives, and why:",
    "speed": (
        "Mutants that are as right as the module and take another time or more memory: the work is cut otherwise,\n"
        "another of the ways that the laws hold for is chosen, data is asked for sooner or later. The bits are the\n"
        "same, or where it is said so the sum has another order within the bound. No test but a clock tells them\n"
        "apart: `make bench`."
    ),
}
"""Why mutants that live are no faults."""


def page(fates: Sequence[Fate], sizes: Mapping[str, int], taught: Set[Mutant]) -> tuple[str, bool]:
    """docs/mutants.md from all that was found about the present sources, and whether every module has its share.

    Those that were `taught` are killed by tests that were written after they had lived.
    """
    why = {fate.mutant: explained(fate) for fate in fates if not fate.killer}
    rows, enough, differ, fresh, weights = [], True, [], [], []
    for module, size in sizes.items():
        tried = [fate for fate in fates if fate.mutant.module == module]
        if not tried:
            continue
        kinds = [reason.kind if reason else "" for fate in tried if (reason := why.get(fate.mutant)) or not fate.killer]
        killed = len(tried) - len(kinds)
        alive = kinds.count("")
        share = killed / (killed + alive) if killed + alive else 1.0
        enough = enough and share >= ENOUGH
        lately = sum(fate.mutant in taught for fate in tried)
        differ += [True] * killed + [False] * alive
        fresh += [True] * (killed - lately) + [False] * (lately + alive)
        weights += [size / len(tried)] * (killed + alive)
        counted = " | ".join(str(kinds.count(kind)) for kind in KINDS)
        rows.append(f"| `{module}` | {size} | {len(tried)} | {killed} | {counted} | {alive} | {share:.1%} |")
    share, worth = _weighted(differ, weights)
    least, most = wilson(share, worth)
    first, _ = _weighted(fresh, weights)
    fresh_least, fresh_most = wilson(first, worth)
    head = HEAD.format(
        cosmic_ray=version("cosmic-ray"), tried=len(fates), every=sum(sizes.values()), share=share, least=least,
        most=most, worth=worth, taught=len(taught), fresh=first, fresh_least=fresh_least, fresh_most=fresh_most,
    )  # fmt: skip
    heads = ("module", "mutants", "tried", "killed", *KINDS, "alive", "killed of those that differ")
    table = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads), *rows]
    untried = [f"`{module}`" for module, size in sizes.items() if size and not _of(fates, module)]
    unexplained = [
        f"- `{fate.mutant.module}:{fate.mutant.line}` `{fate.was}` became `{fate.now}`"
        for fate in fates if not fate.killer and why[fate.mutant] is None
    ]  # fmt: skip
    parts = [head, "\n".join(table)]
    parts += [f"Not tried: {', '.join(untried)}."] if untried else []
    parts += ["## Alive", "\n".join(unexplained) or "None."]
    for kind, meaning in KINDS.items():
        told = [_told(reason, fates, why) for reason in REASONS if reason.kind == kind and reason in why.values()]
        parts += [f"## {kind.capitalize()}", meaning, "\n".join(told) or "None."]
    return "\n\n".join(parts) + "\n", enough


def _of(fates: Sequence[Fate], module: str) -> list[Fate]:
    return [fate for fate in fates if fate.mutant.module == module]


def _told(reason: Reason, fates: Sequence[Fate], why: Mapping[object, Reason | None]) -> str:
    """A reason, of how many mutants it speaks, and one of them."""
    its = [fate for fate in fates if not fate.killer and why[fate.mutant] is reason]
    example = f"`{its[0].mutant.module}:{its[0].mutant.line}` `{its[0].was}` became `{its[0].now}`"
    return f"- {reason.why} ({len(its)}; for example {example})"


def _weighted(hits: Sequence[bool], weights: Sequence[float]) -> tuple[float, float]:
    """The weighted share, and of how many equal draws it would be as sure (Kish, Survey Sampling, 1965, 11.7)."""
    total = sum(weights)
    share = sum(weight for hit, weight in zip(hits, weights, strict=True) if hit) / total
    return share, total**2 / sum(weight**2 for weight in weights)


def wilson(share: float, draws: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share (JASA 22, 1927), which holds near 1, too."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = (share + z**2 / (2 * draws)) / (1 + z**2 / draws)
    half = z * math.sqrt(share * (1 - share) / draws + z**2 / (4 * draws**2)) / (1 + z**2 / draws)
    return middle - half, min(1.0, middle + half)

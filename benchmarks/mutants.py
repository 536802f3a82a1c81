"""Generic mutants: how many faults, planted anywhere in a module, tests notice. `make mutants` writes docs/mutants.md.

cosmic-ray exchanges operators, moves numbers by one, negates conditions, drops decorators. Each mutant of a module is
planted alone, in a copy of the project, and held to the tests that know the module best, until one of them fails. What
was found is kept, by the source of module and tests, so that a run goes on where it was left, and a sample of 20 is
part of a sample of 200.

    python benchmarks/mutants.py                                   # all of them: hours
    python benchmarks/mutants.py --modules spec/conv.py            # all of a module
    python benchmarks/mutants.py --sample 200 --seed 0             # 200 of each module
"""

import argparse
import ast
import difflib
import hashlib
import json
import random
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import cosmic_ray.ast
import cosmic_ray.mutating
from cosmic_ray.plugins import get_operator, operator_names
from laboratory import Laboratory, Tests

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "mutants.md"
KEPT = ROOT / ".kernelproof" / "mutants.jsonl"

SPEC = "test_semantics.py", "test_doors.py", "test_second_formulation.py", "test_laws.py"
VALUES = "whole or ties or significand or reals or special or layout or gaps"
# Whether certificates are current is left out: any change of a kernel's source makes them stale, equivalent or not.
DISPATCH = ("test_verify.py", "test_certificates.py", "test_chain.py", "test_cpu_kernels.py"), "not shipped"

KERNELS = "test_laws.py", "test_algorithms.py", "test_planner.py", "test_cpu_kernels.py"
FAMILIES = {"linear": "linear", "pool": "pool", "relu": "relu", "training": "cross_entropy or sgd"}
"""What the CPU kernels' modules compute; the others are the convolution's."""

TESTS: Mapping[str, Tests] = {
    "spec/relu.py": (SPEC, "relu and not cpu"),
    "spec/linear.py": (SPEC, "(linear or flatten) and not cpu"),
    "spec/pool.py": (SPEC, "pool and not cpu"),
    "spec/training.py": (SPEC, "(cross_entropy or sgd) and not cpu"),
    "spec/conv.py": (SPEC, "conv2d and not cpu"),
    "spec/window.py": (("test_shape_theorems.py", "test_doors.py", "test_second_formulation.py"), ""),
    "proofs_tests/proofs/problems.py": (("test_generators.py",), ""),
    "proofs_tests/proofs/values.py": (("test_generators.py", "test_rounding_bounds.py"), VALUES),
    "proofs_tests/proofs/bounds.py": (("test_rounding_bounds.py",), ""),
    "kernels/contract.py": DISPATCH,
    "kernels/dispatch.py": DISPATCH,
    # Compiled anew for each: a minute or more.
    **{
        path.relative_to(ROOT).as_posix(): (
            KERNELS,
            next((f"({tests}) and not specification" for family, tests in FAMILIES.items() if family in path.stem),
                 "(conv2d or algorithm or plan) and not specification"),
        )
        for path in sorted((ROOT / "kernels" / "cpu").rglob("*.py"))
    },
}  # fmt: skip
"""The modules whose mutants are tried, and the tests of each."""

ENOUGH = 0.98
"""The share of mutants that tests have to notice, of those that differ from the module."""

PAGE_HEAD = """# Generic mutants

Written by `python benchmarks/mutants.py` (`make mutants`), with cosmic-ray {cosmic_ray}. Faults planted anywhere in the
specifications, the generators, the bounds and the kernels, one at a time, each held to the module's own
tests: operators and comparisons exchanged, numbers moved by one, conditions negated, loops and decorators dropped.
Annotations are left out, the type checker has them. {tried:,} of {every:,} mutants were tried, drawn at random.

A mutant that does for every input what the module does is no fault; each kind is explained below."""

PATIENCE = 10
"""A mutant that takes so many times as long as the module itself, and a minute, will not end."""


@dataclass(frozen=True)
class Equivalent:
    """Mutants that change no behaviour: the module, what the changed line was and what it became, as patterns."""

    module: str
    was: str
    now: str
    why: str


EQUIVALENT: Sequence[Equivalent] = (
    Equivalent(
        "spec/.*", r"len\(\w+\.shape\) == 1", r"len\(\w+\.shape\) <= 1",
        "The axes are counted before: no array has fewer.",
    ),
    Equivalent(
        "spec/relu.py", "x.dtype == object", "x.dtype >= object",
        "numpy orders dtypes by what can be cast to what: none but object is at least object.",
    ),
    Equivalent(
        ".*/values.py", r"random\(chosen.shape\) < ", r"random\(chosen.shape\) <= ",
        "A real drawn at random equals no given one.",
    ),
    Equivalent(
        ".*/values.py", 'full != "bias"', '"bias" if full ',
        "Where the bias is full it is drawn as such, absent or not; the other names come after it.",
    ),
    Equivalent(
        ".*/problems.py", "^LONG = ", r"^LONG = 2\*\*14 (<<|\^|\|) 1$",
        "As many elements or more, past what kernels take in one go all the same.",
    ),
    Equivalent("spec/window.py", r"dilation\[axis\] == 1", r"dilation\[axis\] <= 1", "A dilation is 1 or more."),
    Equivalent("spec/pool.py", "fill=-1", r"fill=- ?2", "A mark for padding, of which the sign alone is asked."),
)  # fmt: skip
"""Found among those that lived; a pattern speaks of them alone, so none of those that are killed hides behind it."""


@dataclass(frozen=True)
class Mutant:
    """A fault in a module: the `occurrence`-th place that cosmic-ray's operator finds, at a line."""

    module: str
    operator: str
    occurrence: int
    line: int


@dataclass(frozen=True)
class Fate:
    """What became of a mutant: the test that killed it, "" if it lives; `key` names the module's and tests' source."""

    key: str
    mutant: Mutant
    was: str
    now: str
    killer: str
    seconds: float


def mutants(module: str) -> list[Mutant]:
    """Every mutant of a module. Annotations are left out: they are tried by the type checker."""
    source = (ROOT / module).read_text()
    nodes, annotations = list(cosmic_ray.ast.ast_nodes(cosmic_ray.ast.get_ast(source))), list(annotated(source))
    found = []
    for name in operator_names():
        if name.startswith("core/Variable"):
            continue  # They need to be told the names of variables.
        places = (place for node in nodes for place in get_operator(name)().mutation_positions(node))
        found += [
            Mutant(module, name, occurrence, start[0])
            for occurrence, (start, _) in enumerate(places)
            if not any(first <= start < last for first, last in annotations)
        ]
    return found


def annotated(source: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """From where to where annotations reach."""
    for node in ast.walk(ast.parse(source)):
        for name in ("annotation", "returns"):
            if annotation := getattr(node, name, None):
                yield (
                    (annotation.lineno, annotation.col_offset),
                    (annotation.end_lineno, annotation.end_col_offset),
                )


def key_of(module: str) -> str:
    """Names the source of a module and of its tests."""
    names, choice = TESTS[module]
    files = [ROOT / module, *(ROOT / "proofs_tests" / "tests" / name for name in names)]
    return hashlib.sha256(b"\0".join([*(file.read_bytes() for file in files), choice.encode()])).hexdigest()[:16]


def changed_line(before: str, after: str) -> tuple[str, str]:
    """The line that a mutation changes, as it was and as it is."""
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm=""))[3:]
    was, now = ([line[1:].strip() for line in lines if line.startswith(sign)] for sign in "-+")
    return " ".join(was), " ".join(now)


def kept() -> dict[tuple[str, Mutant], Fate]:
    """What earlier runs found."""
    if not KEPT.exists():
        return {}
    rows = map(json.loads, KEPT.read_text().splitlines())
    fates = (Fate(**{**row, "mutant": Mutant(**row["mutant"])}) for row in rows)
    return {(fate.key, fate.mutant): fate for fate in fates}


def chosen(module: str, sample: int | None, seed: int) -> list[Mutant]:
    """All of a module's mutants, or so many drawn by the seed."""
    every = mutants(module)
    random.Random(f"{seed} {module}").shuffle(every)
    return every[:sample]


def run(modules: Iterable[str], sample: int | None, seed: int) -> None:
    """Try the mutants that are not tried yet."""
    known = kept()
    KEPT.parent.mkdir(exist_ok=True)
    with Laboratory(ROOT) as laboratory, KEPT.open("a") as file:
        for module in modules:
            key, clean = key_of(module), (ROOT / module).read_text()
            left = [mutant for mutant in chosen(module, sample, seed) if (key, mutant) not in known]
            if not left:
                continue
            started = time.perf_counter()
            if broken := laboratory.test(module, clean, TESTS[module], None):
                raise SystemExit(f"{module}: {broken} fails without any mutant")
            time_limit = 60 + PATIENCE * (time.perf_counter() - started)
            for number, mutant in enumerate(left, 1):
                source = cosmic_ray.mutating.mutate_code(clean, get_operator(mutant.operator)(), mutant.occurrence)
                started = time.perf_counter()
                killer = laboratory.test(module, source, TESTS[module], time_limit)
                seconds = time.perf_counter() - started
                fate = Fate(key, mutant, *changed_line(clean, source), killer, round(seconds, 2))
                file.write(json.dumps(asdict(fate)) + "\n")
                file.flush()
                print(f"{module} {number}/{len(left)} {killer or f'LIVES  {mutant.line}: {fate.now}'}", flush=True)


def explained(fate: Fate) -> Equivalent | None:
    """Why a mutant that lives changes nothing, if it is known."""
    return next(
        (
            each
            for each in EQUIVALENT
            if re.fullmatch(each.module, fate.mutant.module)
            and re.search(each.was, fate.was)
            and re.search(each.now, fate.now)
        ),
        None,
    )


def page() -> tuple[str, bool]:
    """docs/mutants.md from all that was found about the present sources, and whether every module has its share."""
    current = {module: key_of(module) for module in TESTS}
    fates = [fate for fate in kept().values() if fate.key == current.get(fate.mutant.module)]
    lives = [fate for fate in fates if not fate.killer]
    why = {fate.mutant: explained(fate) for fate in lives}
    rows, enough = [], True
    for module in TESTS:
        tried = [fate for fate in fates if fate.mutant.module == module]
        alive = [fate for fate in tried if not fate.killer]
        equivalent = sum(why[fate.mutant] is not None for fate in alive)
        count = len(tried) - equivalent
        if not tried:
            continue
        share = (count - (len(alive) - equivalent)) / count if count else 1.0
        enough = enough and share >= ENOUGH
        rows.append(
            f"| `{module}` | {len(mutants(module))} | {len(tried)} | {len(tried) - len(alive)} | {equivalent} | "
            f"{len(alive) - equivalent} | {share:.1%} |"
        )
    unexplained = [
        f"- `{fate.mutant.module}:{fate.mutant.line}` `{fate.was}` became `{fate.now}`"
        for fate in lives if why[fate.mutant] is None
    ]  # fmt: skip
    reasons = [
        f"- {each.why} ({sum(found is each for found in why.values())}; for example "
        + next(f"`{fate.mutant.module}:{fate.mutant.line}` `{fate.now}`)" for fate in lives if why[fate.mutant] is each)
        for each in EQUIVALENT if each in why.values()
    ]  # fmt: skip
    head = PAGE_HEAD.format(
        tried=len(fates), every=sum(len(mutants(module)) for module in TESTS), cosmic_ray=version("cosmic-ray")
    )
    table = [
        "| module | mutants | tried | killed | equivalent | alive | killed of those that differ |",
        "|" + "---|" * 7,
    ]
    untried = [f"`{module}`" for module in TESTS if not any(fate.mutant.module == module for fate in fates)]
    parts = [head, "\n".join(table + rows)]
    parts += [f"Not tried: {', '.join(untried)}."] if untried else []
    parts += ["## Alive", "\n".join(unexplained) or "None."]
    parts += ["## Equivalent", "Mutants that do what the module does, and why:", "\n".join(reasons) or "None."]
    return "\n\n".join(parts) + "\n", enough


def main() -> int:
    """Try mutants, as the arguments say, and write the page about all that were ever tried."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", nargs="+", choices=TESTS, default=list(TESTS), metavar="MODULE")
    parser.add_argument("--sample", type=int, help="so many of each module; left out: all")
    parser.add_argument("--seed", type=int, default=0, help="draws the sample")
    parser.add_argument("--page", action="store_true", help="write the page about what is known, and try nothing")
    given = parser.parse_args()
    if not given.page:
        run(given.modules, given.sample, given.seed)
    text, enough = page()
    PAGE.write_text(text)
    print(text)
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main())

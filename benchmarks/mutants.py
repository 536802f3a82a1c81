"""Generic mutants: how many faults, planted anywhere in a module, tests notice. `make mutants` writes docs/mutants.md.

cosmic-ray exchanges operators, moves numbers by one, negates conditions, drops decorators. Each mutant of a module is
planted alone, in a copy of the project, and held to the tests that know the module best, until one of them fails. What
was found is kept, by the source of module and tests, so that a run goes on where it was left, a new test brings only
those back that lived, and a sample of 20 is part of a sample of 200.

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
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

import cosmic_ray.ast
import cosmic_ray.mutating
from cosmic_ray.plugins import get_operator, operator_names
from laboratory import Laboratory
from mutant_fates import Fate, Mutant
from mutant_page import page
from mutant_tests import TESTS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "mutants.md"
FOLDER = "proofs_tests/tests"
KEPT = ROOT / ".kernelproof" / "mutants.jsonl"

FEW = 4
"""Mutants of each module that are tried first."""

PATIENCE = 4
"""A mutant that takes so many times as long as the module itself, and half a minute, will not end."""


def mutants(module: str, source: str) -> list[Mutant]:
    """Every mutant of a module. Annotations are left out: they are tried by the type checker."""
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


def key_of(module: str, killer: str, root: Path = ROOT) -> str:
    """Names the source of a module and of what decided a mutant's fate: its killer's file, or all tests if it lives."""
    files = [name for names, _ in TESTS[module] for name in names]
    killers = [name for name in files if name in killer]
    sources = [(root / file).read_bytes() for file in (module, *(f"{FOLDER}/{name}" for name in killers or files))]
    choices = [choice.encode() for _, choice in TESTS[module] if not killers]
    return hashlib.sha256(b"\0".join(sources + choices)).hexdigest()[:16]


def changed_line(before: str, after: str) -> tuple[str, str]:
    """The line that a mutation changes, as it was and as it is."""
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm=""))[3:]
    was, now = ([line[1:].strip() for line in lines if line.startswith(sign)] for sign in "-+")
    return " ".join(was), " ".join(now)


def found() -> list[Fate]:
    """All that runs ever found."""
    rows = map(json.loads, KEPT.read_text().splitlines() if KEPT.exists() else ())
    return [Fate(**{**row, "mutant": Mutant(**row["mutant"])}) for row in rows]


def known(root: Path = ROOT) -> dict[Mutant, Fate]:
    """What runs found that speaks of the present sources."""
    key = cache(lambda module, killer: key_of(module, killer, root))
    return {
        fate.mutant: fate
        for fate in found() if fate.mutant.module in TESTS and fate.key == key(fate.mutant.module, fate.killer)
    }  # fmt: skip


def chosen(module: str, source: str, sample: int | None, seed: int) -> list[Mutant]:
    """All of a module's mutants, or so many drawn by the seed."""
    every = mutants(module, source)
    random.Random(f"{seed} {module}").shuffle(every)
    return every[:sample]


def run(modules: Iterable[str], sample: int | None, seed: int) -> None:
    """Try the mutants that are not tried yet."""
    KEPT.parent.mkdir(exist_ok=True)
    with Laboratory(ROOT) as laboratory, KEPT.open("a") as file:
        clean = {module: (laboratory.root / module).read_text() for module in modules}
        drawn = {module: chosen(module, source, sample, seed) for module, source in clean.items()}
        tried = known(laboratory.root)
        left = [mutant for mutant in in_turn(drawn) if mutant not in tried]
        for number, mutant in enumerate(left, 1):
            module, source = mutant.module, clean[mutant.module]
            limits = {stage: 30 + PATIENCE * laboratory.seconds_without_fault(module, stage) for stage in TESTS[module]}
            changed = cosmic_ray.mutating.mutate_code(source, get_operator(mutant.operator)(), mutant.occurrence)
            started = time.perf_counter()
            killer = laboratory.test(module, changed, limits)
            seconds = round(time.perf_counter() - started, 2)
            key = key_of(module, killer, laboratory.root)
            fate = Fate(key, mutant, *changed_line(source, changed), killer, seconds)
            file.write(json.dumps(asdict(fate)) + "\n")
            file.flush()
            told = killer or f"LIVES  {mutant.line}: {fate.now}"
            print(f"{number}/{len(left)} {module} {seconds:.0f} s {told}", flush=True)


def in_turn(drawn: Mapping[str, Sequence[Mutant]]) -> Iterator[Mutant]:
    """A few of each module, then of each in proportion to its size: a run that is broken off leaves a fair sample."""
    places = [
        (max(0, place + 1 - FEW) / len(every), place, module) for module, every in drawn.items()
        for place in range(len(every))
    ]  # fmt: skip
    for _, place, module in sorted(places):
        yield drawn[module][place]


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
    sizes = {module: len(mutants(module, (ROOT / module).read_text())) for module in TESTS}
    fates, lived = list(known().values()), {(fate.mutant, fate.now) for fate in found() if not fate.killer}
    taught = {fate.mutant for fate in fates if fate.killer and (fate.mutant, fate.now) in lived}
    text, enough = page(fates, sizes, taught)
    PAGE.write_text(text)
    print(text)
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main())

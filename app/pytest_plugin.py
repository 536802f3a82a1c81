"""The pytest plugin: a project keeps the proof of its kernels among its own tests.

    from kernelproof import proof
    from mykernels import conv2d

    test_conv2d = proof(conv2d, op="conv2d", supports="groups == 1")

is a test for every law of the operator. pytest loads this file wherever it is installed, so nothing but pytest is
imported before a proof is collected.
"""

import secrets
from collections.abc import Callable, Mapping
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from kernelproof.proofs import Report, Subject
    from kernelproof.proofs.cases import Case

_EXPECTED = pytest.StashKey[dict[tuple[str, str], str]]()
_CASES = pytest.StashKey[list["Case"]]()


def proof(
    kernel: Any,
    op: str | None = None,
    *,
    dtypes: tuple[str, ...] | None = None,
    supports: str | Callable[..., bool] | None = None,
    precision: str | None = None,
    layouts: Mapping[str, str] | None = None,
    threads: str | Callable[[int], object] | None = None,
    name: str | None = None,
    time_limit: float | None = None,
) -> Callable[..., None]:
    """A test function that holds the kernel to every law of its operator, a test item for each.

    Arguments as for `kernelproof.verify`; `name` is what reproductions import, by default the kernel's module and name.
    A law whose problems the kernel all declines is skipped, never passed. Raises ParameterError.
    """
    from kernelproof.proofs import subject_of

    subject = subject_of(
        kernel, op, dtypes=dtypes, supports=supports, precision=precision, layouts=layouts, threads=threads, name=name
    )  # fmt: skip

    def test(operator: str, law: str, pytestconfig: pytest.Config) -> None:
        _hold(subject, operator, law, time_limit, pytestconfig)

    test.kernelproof_subject = subject  # type: ignore[attr-defined]
    return test


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options, all under --kernelproof-."""
    group = parser.getgroup("kernelproof", "kernels held to the laws of their operators")
    group.addoption(
        "--kernelproof-profile", choices=("dev", "ci", "nightly"), default="ci",
        help="how many problems are drawn for each law: dev 30, ci 100, nightly 2000 and new ones each time",
    )  # fmt: skip
    group.addoption("--kernelproof-examples", type=int, metavar="N", help="problems drawn for each law")
    group.addoption("--kernelproof-seed", type=int, metavar="N", help="draws the problems (default: 0)")
    group.addoption(
        "--kernelproof-level", action="append", metavar="L1", help="only laws of this level; may be given several times"
    )
    group.addoption(
        "--kernelproof-shard", metavar="I/N", help="only a part of the laws: 3/16 is the third of every sixteen"
    )
    group.addoption(
        "--kernelproof-cases", default=".kernelproof/cases", metavar="DIR",
        help="where failing cases are saved and tried first the next time (default: .kernelproof/cases)",
    )  # fmt: skip
    group.addoption(
        "--kernelproof-xfail", metavar="FILE",
        help="laws that are known to be broken, a line each: operator, law, reason; one that holds is an error",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Refuse wrong options before anything runs; raises UsageError."""
    levels, file = config.option.kernelproof_level, config.option.kernelproof_xfail
    examples = config.option.kernelproof_examples
    config.stash[_EXPECTED] = {}
    if examples is not None and examples < 1:
        raise pytest.UsageError(f"--kernelproof-examples {examples}: needs at least 1")
    if levels:
        from kernelproof.proofs.verify import LEVELS

        if wrong := set(levels) - set(LEVELS):
            raise pytest.UsageError(f"--kernelproof-level {min(wrong)}: needs one of {', '.join(LEVELS)}")
    if file:
        try:
            lines = enumerate((config.rootpath / file).read_text().splitlines(), 1)
        except (OSError, UnicodeDecodeError) as error:
            raise pytest.UsageError(f"--kernelproof-xfail {file}: {error}") from None
        config.stash[_EXPECTED].update(
            _entry(f"{file}:{number}", line) for number, line in lines if line.strip() and not line.startswith("#")
        )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test item for each operator and law of a proof."""
    subject: Subject | None = getattr(metafunc.function, "kernelproof_subject", None)
    if subject is None:
        return
    from kernelproof.proofs.verify import LEVELS, laws_for

    levels, expected = metafunc.config.option.kernelproof_level or LEVELS, metafunc.config.stash[_EXPECTED]
    metafunc.parametrize(
        ("operator", "law"),
        [
            pytest.param(
                operator, law.name, id=f"{operator}-{law.level}-{law.name}",
                marks=[_failing(expected[operator, law.name])] if (operator, law.name) in expected else (),
            )
            for operator in subject.functions
            for law in laws_for(subject, operator, levels)
        ],
    )  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the proofs, leave this shard's; other tests are not touched."""
    shard = config.option.kernelproof_shard
    proofs = [item for item in items if hasattr(getattr(item, "function", None), "kernelproof_subject")]
    if shard is None or not proofs:
        return
    from kernelproof.proofs.jobs import share
    from kernelproof.spec import ParameterError

    try:
        others = set(proofs) - set(share(proofs, shard))
    except ParameterError as wrong:
        raise pytest.UsageError(f"--kernelproof-shard: {wrong}") from None
    items[:] = [item for item in items if item not in others]
    config.hook.pytest_deselected(items=[item for item in proofs if item in others])


def _failing(reason: str) -> pytest.MarkDecorator:
    return pytest.mark.xfail(reason=reason, strict=True, raises=pytest.fail.Exception)


def _entry(where: str, line: str) -> tuple[tuple[str, str], str]:
    """Operator and law that a line of the xfail file names, and the reason; raises UsageError."""
    from kernelproof.proofs import LAWS

    match line.split(maxsplit=2):
        case [operator, law, reason] if law in LAWS and operator in LAWS[law].holds_for:
            return (operator, law), reason
    raise pytest.UsageError(f"{where}: {line!r}: needs an operator, a law that it has, and a reason")


def _hold(subject: "Subject", operator: str, law: str, time_limit: float | None, config: pytest.Config) -> None:
    """Hold the law as the options say; ends as a test does."""
    from kernelproof.proofs import Report
    from kernelproof.proofs.cases import known, load_all
    from kernelproof.proofs.jobs import Job, merge, run_jobs
    from kernelproof.proofs.verify import PROFILES
    from kernelproof.replay_command import save

    profile, folder = config.option.kernelproof_profile, config.rootpath / config.option.kernelproof_cases
    examples, seed = config.option.kernelproof_examples, config.option.kernelproof_seed
    if _CASES not in config.stash:
        config.stash[_CASES] = load_all(folder)
    seed = (secrets.randbits(32) if profile == "nightly" else 0) if seed is None else seed
    examples = PROFILES[profile] if examples is None else examples
    job = Job(operator, law, examples, seed, known=known(config.stash[_CASES], subject.name).get((operator, law), ()))
    result = reduce(merge, run_jobs(subject, job.parts(), time_limit=time_limit))
    report = Report(subject.name, seed, examples, (result,), subject.declared, subject.source)
    match result.verdict:
        case "refuted":
            pytest.fail(_told(report, save(report, folder)), pytrace=False)
        case "vacuous":
            pytest.fail(f"none of the {result.vacuous} problems says anything: zeros are right", pytrace=False)
        case "unsupported":
            pytest.skip(f"the kernel declines all {result.unsupported} problems: {result.declined}")


def _told(report: "Report", saved: list[Path]) -> str:
    from kernelproof.proofs.report import reproduction, smallest_case

    [result] = report.results
    assert result.failure is not None
    lines = [result.failure.message, f"law: {result.statement}"]
    if saved:
        lines += [
            f"{smallest_case(result)}, to paste into Python:", "", reproduction(result, report), "",
            f"Saved; to try it again: kernelproof replay {saved[0]}",
        ]  # fmt: skip
    return "\n".join(lines)

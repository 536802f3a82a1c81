"""Certificates: every shipped CPU kernel holds a current one, and none survives a change of what it speaks of."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kernelproof import kernels, spec
from kernelproof.kernels import dispatch
from kernelproof.kernels.source import find_in, kernels_hash, source_hash, specification_hash
from kernelproof.proofs import certificate, verify
from kernelproof.proofs.subject import PROMISED
from kernelproof.spec import OPERATORS

KERNEL = """
import numpy as np
from helpers import floor

def relu(x):
    \"\"\"The rectifier.\"\"\"
    return np.where(x < floor(), np.zeros_like(x), x)
"""


THREADED = """
import numpy as np

number = [1]

def use(count):
    number[0] = count

def relu(x):
    return np.where(x < 0, np.zeros_like(x), x) * np.float32(number[0] > 0)
"""


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a kernel, a helper of it, and a certificate."""
    folder = tmp_path_factory.mktemp("certified")
    (folder / "mykernels.py").write_text(KERNEL)
    (folder / "helpers.py").write_text("def floor():\n    return 0\n")
    arguments = ("mykernels:relu", "--op", "relu", "--examples", "20", "--certificate", "relu.json")
    came = kernelproof(folder, "verify", *arguments)
    assert came.returncode == 0, came.stderr
    return folder


@pytest.fixture
def project(certified: Path, tmp_path: Path) -> Path:
    """The same, to change."""
    return Path(shutil.copytree(certified, tmp_path / "project"))


def kernelproof(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line there."""
    command = [sys.executable, "-m", "kernelproof", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


# The kernels that are shipped


SHIPPED = ("cpu", "cuda", "cuda-fast", "cuda-tf32", "cuda-fp16", "cuda-bf16")


# The CUDA kernels were changed after their laws were last held on a GPU; CI has none. Once they are certified anew, the
# mark itself fails, and goes.
@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_kernel_holds_a_current_certificate(name: str) -> None:
    states = {operator: state for (operator, each), state in dispatch.certificates().items() if each == name}
    lacking = {operator: state for operator, state in states.items() if state != "current"}
    assert not lacking, "CONTRIBUTING.md, 10, says how to make it anew"


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_kernel_was_proven_once(name: str) -> None:
    states = {operator: state for (operator, each), state in dispatch.certificates().items() if each == name}
    assert set(states) == set(dispatch.ROUNDED if "-" in name else OPERATORS)
    assert "none" not in states.values()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_certificate_leaves_no_law_out(name: str) -> None:
    held, backend = shipped(name), name.partition("-")[0]
    assert certificate.differences(held, certificate.certified(held, backend)) == [], "CONTRIBUTING.md, 10"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_certificate_is_of_its_precision(name: str) -> None:
    held = shipped(name)
    backend, _, precision = name.partition("-")
    assert (held["kernel"], held["declared"]["precision"]) == (backend, {"": None, **PROMISED}[precision])


def shipped(name: str) -> Any:
    """A certificate's contents."""
    return json.loads((Path(dispatch.__file__).parent / "certificates" / f"{name}.json").read_text())


def test_certificates_are_asked_of_all_that_is_shipped() -> None:
    assert {name for _, name in dispatch.certificates()} == set(SHIPPED)
    rounding = kernels.backend("cuda").at("fast")
    assert [name for name, operator in OPERATORS.items() if rounding.rounds(operator)] == list(dispatch.ROUNDED)


def test_a_certificate_of_another_source_is_stale_and_a_missing_one_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "kernels_hash", lambda backend: "another")
    states = dispatch.certificates()
    assert {state for (_, backend), state in states.items() if backend == "cpu"} == {"stale"}
    monkeypatch.setattr(dispatch, "__file__", "/nowhere/dispatch.py")
    assert set(dispatch.certificates().values()) == {"none"}


def test_a_certificate_of_another_specification_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        dispatch,
        "specification_hash",
        lambda operator: "another" if operator == "relu" else specification_hash(operator),
    )
    states = dispatch.certificates()
    assert (states["relu", "cpu"], states["conv2d", "cpu"]) == ("stale", "current")


# Anybody's kernels


def test_a_certificate_holds_until_the_kernel_changes(project: Path) -> None:
    assert kernelproof(project, "check-certificate", "relu.json").returncode == 0
    kernel = project / "mykernels.py"
    kernel.write_text(
        KERNEL.replace("The rectifier", "Another docstring").replace("(x < floor()", "( # why\n  x<floor()")
    )
    assert kernelproof(project, "check-certificate", "relu.json").returncode == 0
    kernel.write_text(KERNEL.replace("<", "<="))
    came = kernelproof(project, "check-certificate", "relu.json")
    assert came.returncode == 1
    assert "the source of mykernels:relu has changed" in came.stdout


def test_a_certificate_ends_with_a_change_of_what_the_kernel_imports(project: Path) -> None:
    (project / "helpers.py").write_text("def floor():\n    return 1\n")
    came = kernelproof(project, "check-certificate", "relu.json", "--again")
    assert came.returncode == 1
    assert "the source of mykernels:relu has changed" in came.stdout
    assert "mykernels:relu: refuted" in came.stdout


def test_a_certificate_says_which_laws_it_lacks(project: Path) -> None:
    path = project / "relu.json"
    held = json.loads(path.read_text())
    assert {"seed", "examples", "precision", "versions", "source"} <= set(held)
    laws = held["operators"]["relu"]["laws"]
    assert {law["verdict"] for law in laws.values()} == {"proven"}
    del laws["equals_the_specification_where_values_tie"]
    held["operators"]["relu"]["specification"] = "another"
    path.write_text(json.dumps(held))
    came = kernelproof(project, "check-certificate", "relu.json")
    assert came.returncode == 1
    assert "relu was not held to: equals the specification where values tie" in came.stdout
    assert "the specification of relu has changed" in came.stdout


def test_a_certificate_of_a_kernel_that_was_refuted_does_not_hold(project: Path) -> None:
    path = project / "relu.json"
    whole = path.read_text()
    held = json.loads(whole)
    held["operators"]["relu"]["laws"]["gives_the_same_bits_again"]["verdict"] = "refuted"
    path.write_text(json.dumps(held))
    came = kernelproof(project, "check-certificate", "relu.json")
    assert (came.returncode, "relu did not hold: gives the same bits again" in came.stdout) == (1, True)
    path.write_text(json.dumps({**json.loads(whole), "verdict": "refuted"}))
    came = kernelproof(project, "check-certificate", "relu.json")
    assert (came.returncode, "relu was not proven but refuted" in came.stdout) == (1, True)


def test_the_proof_can_be_repeated(project: Path) -> None:
    came = kernelproof(project, "check-certificate", "relu.json", "--again")
    assert came.returncode == 0
    assert "mykernels:relu: proven" in came.stdout


def test_threads_are_declared_once_for_certificate_case_and_reproduction(tmp_path: Path) -> None:
    kernel = tmp_path / "mythreads.py"
    kernel.write_text(THREADED)
    arguments = ("mythreads:relu", "--op", "relu", "--level", "L7", "--examples", "20", "--threads", "mythreads:use")
    came = kernelproof(tmp_path, "verify", *arguments, "--certificate", "relu.json")
    assert came.returncode == 0, came.stdout
    held = json.loads((tmp_path / "relu.json").read_text())
    law = "gives_the_same_bits_on_any_number_of_threads"
    assert (held["declared"]["threads"], law in held["operators"]["relu"]["laws"]) == ("mythreads:use", True)
    came = kernelproof(tmp_path, "check-certificate", "relu.json", "--again")
    assert f"proven  L7 relu                   {law.replace('_', ' ')}" in came.stdout
    kernel.write_text(THREADED.replace("number[0] = count", "number[0] = count - 1"))
    came = kernelproof(tmp_path, "verify", *arguments)
    assert came.returncode == 1
    assert f"check('{law}', kernel, problem, threads='mythreads:use')" in came.stdout
    assert kernelproof(tmp_path, "replay").returncode == 1
    assert kernelproof(tmp_path, "verify", *arguments[:-1], "mythreads:nothing").returncode == 2


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"schema": "kernelproof.certificate/99"}',
        f'{{"schema": "{certificate.SCHEMA}", "operators": {{"relu": 5}}}}',
    ],
)
def test_a_file_that_is_no_certificate_is_wrong_usage(content: str, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text(content)
    came = kernelproof(tmp_path, "check-certificate", "file.json")
    assert (came.returncode, "Traceback" in came.stderr) == (2, False)


def test_a_refuted_kernel_gets_no_certificate() -> None:
    def relu(x: Any) -> Any:
        return x

    with pytest.raises(spec.ParameterError, match="refuted"):
        certificate.certificate(verify(relu, "relu", level="L1", examples=5))


# The hash


def test_the_hash_names_modules_and_not_places(tmp_path: Path) -> None:
    folder = Path(kernels.__file__).parent
    shutil.copytree(folder, tmp_path / "elsewhere")
    moved = source_hash("kernelproof.kernels.cpu", find_in("kernelproof.kernels", tmp_path / "elsewhere"))
    assert moved == kernels_hash("cpu")
    assert kernels_hash("cpu") != kernels_hash("cuda")


@pytest.mark.parametrize(
    ("module", "counts"),
    [
        ("cpu/relu.py", True),
        ("cpu/launch.py", True),
        ("contract.py", True),
        ("dispatch.py", False),
        ("cuda/relu.py", False),
    ],
)
def test_the_hash_counts_what_the_kernels_import(module: str, counts: bool, tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    shutil.copytree(Path(kernels.__file__).parent, folder)
    (folder / module).write_text((folder / module).read_text() + "\nadded = 1\n")
    changed = source_hash("kernelproof.kernels.cpu", find_in("kernelproof.kernels", folder)) != kernels_hash("cpu")
    assert changed == counts


@pytest.mark.parametrize(
    ("source", "same"),
    [
        ("def f(x):\n    # why\n    return (x + 1)\n", True),
        ('"""Module."""\ndef f(x):\n    """Docstring."""\n    return x+1\n', True),
        ("def f(x):\n    return x + 2\n", False),
        ("def f(x):\n    return x + 1.0\n", False),
        ("def f(y):\n    return y + 1\n", False),
    ],
)
def test_the_hash_counts_meaning_and_not_writing(source: str, same: bool, tmp_path: Path) -> None:
    hashes = []
    for text in ("def f(x):\n    return x + 1\n", source):
        path = tmp_path / f"{len(hashes)}.py"
        path.write_text(text)
        hashes.append(source_hash("module", {"module": path}.get))
    assert (hashes[0] == hashes[1]) == same

"""The house: imports run one way, public names are documented, no operator misses a part, no rule is broken."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernelproof.models.onnx_export import NODES
from kernelproof.proofs.problems import CONFIGURATIONS
from kernelproof.proofs.verify import LEVELS, laws_of
from kernelproof.spec import OPERATORS, OPS

ROOT = Path(__file__).parents[2]

FOLDERS = {
    "kernelproof.spec": "spec",
    "kernelproof.kernels": "kernels",
    "kernelproof.models": "models",
    "kernelproof.proofs": "proofs_tests/proofs",
    "kernelproof": "app",
}
"""Import names and the folders they stand for, the root package last: it holds the other names' beginning."""

MAY_IMPORT = {
    "kernelproof.spec": {"numpy", "jaxtyping", "beartype"},
    # llvmlite is numba's compiler, cuda the driver's bindings that numba-cuda stands on; torch for torch's own tensors.
    "kernelproof.kernels": {"kernelproof.spec", "numpy", "jaxtyping", "beartype", "numba", "llvmlite", "cuda", "torch"},
    "kernelproof.models": {"kernelproof.spec", "kernelproof.kernels", "numpy", "jaxtyping", "beartype", "safetensors"},
    "kernelproof.proofs": {"kernelproof.spec", "kernelproof.kernels", "numpy", "hypothesis", "z3", "cloudpickle"},
}
"""Beside itself and the standard library. The app, which is not listed, may import everything."""

HEAVY = ("numba", "onnx", "onnxruntime", "hypothesis", "z3", "torch")

FILES = [(package, path) for package, folder in FOLDERS.items() for path in sorted((ROOT / folder).rglob("*.py"))]
TESTS = sorted((ROOT / "proofs_tests" / "tests").glob("*.py"))

NOT_EXPORTED = {
    "cross_entropy": "training stays here: an exported graph computes the logits",
    "sgd": "training stays here: an exported graph computes the logits",
}
TRANSCENDENTAL = "exp and log have no exact results: level L3 holds it to its derived bound"
ELEMENTWISE = "every entry stands alone, so no identity relates one result to another"
NO_LAW = {
    **{(name, level): TRANSCENDENTAL
       for name in ("cross_entropy", "cross_entropy.dlogits") for level in ("L1", "L2", "L5", "L6")},
    ("relu.dx", "L6"): ELEMENTWISE,
    ("sgd", "L6"): ELEMENTWISE,
}  # fmt: skip
"""Operators without a law at a level, and why."""


def package_of(module: str) -> str:
    """The folder's import name that a module of this project is in."""
    return next(name for name in FOLDERS if module == name or module.startswith(f"{name}."))


def module_of(package: str, path: Path) -> str:
    inside = path.relative_to(ROOT / FOLDERS[package]).with_suffix("").parts
    return ".".join([package, *(part for part in inside if part != "__init__")])


def imports(package: str, path: Path) -> Iterator[str]:
    """The modules that a file imports, and those of this project that it names for a later import."""
    module = module_of(package, path)
    here = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                yield from (each.name for each in names)
            case ast.ImportFrom(module=name, names=names, level=level):
                start = here.rsplit(".", level - 1)[0] if level > 1 else here
                origin = name or "" if level == 0 else f"{start}.{name}" if name else start
                # `from kernelproof import spec` imports kernelproof.spec.
                yield from (f"{origin}.{each.name}" for each in names) if origin in FOLDERS else (origin,)
            case ast.Constant(value=str(text)) if re.fullmatch(r"kernelproof(\.\w+)+", text):
                if any(text == name or text.startswith(f"{name}.") for name in MAY_IMPORT):
                    yield text


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_one_way(package: str):
    wrong = []
    for path in (path for each, path in FILES if each == package):
        allowed = MAY_IMPORT[package] | {package} | ({"onnx"} if path.name.startswith("onnx_") else set())
        for module in imports(package, path):
            ours = module.partition(".")[0] == "kernelproof"
            origin = package_of(module) if ours else module.partition(".")[0]
            if origin not in allowed and origin not in sys.stdlib_module_names:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong


@pytest.mark.parametrize(("here", "there"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_kernels_of_one_processor_do_not_know_the_other(here: str, there: str):
    for path in (ROOT / "kernels" / here).rglob("*.py"):
        assert not [name for name in imports("kernelproof.kernels", path) if f"kernels.{there}" in name], path


@pytest.mark.parametrize(("package", "path"), FILES, ids=[str(path.relative_to(ROOT)) for _, path in FILES])
def test_every_module_says_what_it_is_for(package: str, path: Path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def documented_names(folder: Path) -> set[str]:
    """Functions and classes with a docstring, and assignments with one below them."""
    names = set()
    for path in folder.rglob("*.py"):
        body = ast.parse(path.read_text()).body
        for node, after in zip(body, [*body[1:], ast.Pass()], strict=True):
            match node:
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name) if ast.get_docstring(node):
                    names.add(name)
                case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                    match after:
                        case ast.Expr(value=ast.Constant(value=str())):
                            names.add(name)
    return names


@pytest.mark.parametrize("package", FOLDERS)
def test_public_names_exist_and_are_documented(package: str):
    module = importlib.import_module(package)
    documented = set().union(*(documented_names(ROOT / folder) for folder in FOLDERS.values()))
    assert list(module.__all__), f"{package} lists no public names"
    for name in module.__all__:
        thing = getattr(module, name)
        is_module = type(thing) is type(sys)
        assert name in documented or (is_module and thing.__doc__), f"{package}.{name} has no docstring"


def told_of_numba() -> Iterator[tuple[str, str, list[str]]]:
    """Modules, names and arguments that the type checker is told of in place of numba's own."""
    stubs = ROOT / "_typing" / "stubs"
    for path in sorted(stubs.rglob("*.pyi")):
        module = ".".join(part for part in path.relative_to(stubs).with_suffix("").parts if part != "__init__")
        for node in ast.parse(path.read_text()).body:
            match node:
                case ast.FunctionDef(name=name, args=args, decorator_list=[]):
                    yield module, name, [each.arg for each in (*args.args, *args.kwonlyargs)]
                case ast.ClassDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)) if not name.startswith("_"):
                    yield module, name, []


def test_the_type_checker_is_told_of_numba_what_is_there():
    """Asked of a fresh process, where numba-cuda stands in its place with no simulator."""
    script = """
import importlib, inspect, json, sys
import kernelproof.kernels.cuda
for module, name, arguments in json.load(sys.stdin):
    thing = getattr(importlib.import_module(module), name)
    assert not arguments or not set(arguments) - set(inspect.signature(thing).parameters), (module, name)
"""
    told = list(told_of_numba())
    assert len({module for module, _, _ in told}) == 5
    env = {key: value for key, value in os.environ.items() if key != "NUMBA_ENABLE_CUDASIM"}
    subprocess.run([sys.executable, "-c", script], input=json.dumps(told), env=env, text=True, check=True)


def test_the_type_checker_sees_every_file():
    """Neither pyright nor `rglob` follows a link to a folder, unless it is told of that one by its name."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pyright"]
    seen = {path.resolve() for folder in told["include"] for path in (ROOT / folder).rglob("*.py")}
    assert not {path.resolve() for path in (*(path for _, path in FILES), *TESTS)} - seen
    assert "exclude" not in told


def test_every_operator_has_a_kernel_on_every_backend():
    """Asked of a fresh process: numba's simulator, which needs no GPU, is chosen before numba is imported."""
    script = (
        "import json, kernelproof.kernels.cpu, kernelproof.kernels.cuda;"
        "from kernelproof.kernels import KERNELS; print(json.dumps(list(KERNELS)))"
    )
    env = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    came = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    have = {tuple(each) for each in json.loads(came.stdout)}
    missing = {(name.replace(".", "_"), backend) for name in OPERATORS for backend in ("cpu", "cuda")} - have
    assert not missing


def test_every_operator_has_problems():
    assert set(CONFIGURATIONS) == set(OPS)


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_has_laws_at_every_level(operator: str):
    # L0 speaks of sizes, the same for all; L5 of gradients.
    applies = {level for level in LEVELS if level != "L0" and (level != "L5" or "." in operator)}
    missing = applies - {law.level for law in laws_of(operator)}
    exempt = {level for name, level in NO_LAW if name == operator} & applies
    assert missing == exempt


def test_every_operator_has_a_node_or_a_reason():
    exported = {name for name, op in OPS.items() if op.onnx}
    assert exported == set(NODES)
    assert set(OPS) - exported == set(NOT_EXPORTED)


@pytest.mark.parametrize(("folder", "name"), [
    (".", "spec"), (".", "kernels"), (".", "models"), ("proofs_tests", "proofs"),
])  # fmt: skip
def test_a_folder_is_not_imported_under_its_bare_name(folder: str, name: str):
    came = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT / folder, capture_output=True, text=True, check=False
    )
    assert came.returncode == 1
    assert f"ImportError: import kernelproof.{name}, not {name}" in came.stderr


def test_importing_the_package_imports_nothing_heavy():
    script = "import sys, kernelproof; print([name for name in sys.argv[1:] if name in sys.modules])"
    came = subprocess.run([sys.executable, "-c", script, *HEAVY], capture_output=True, text=True, check=True)
    assert came.stdout.strip() == "[]"


def rules_broken(path: Path) -> Iterator[str]:
    """Comparisons with a tolerance, arithmetic that folds NaN away, handlers that catch everything."""
    tree = ast.parse(path.read_text())
    annotates = any(isinstance(node, ast.ImportFrom) and node.module == "jaxtyping" for node in ast.walk(tree))
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.keyword(arg=str(name)) if re.fullmatch(
                r"(assert_)?all_?close|isclose|assert_almost_equal|approx|rtol|atol", name
            ):
                yield f"{name}: exact first, a derived bound second, a tolerance never"
            case ast.keyword(arg="fastmath", value=ast.Constant(value=True)):
                yield "fastmath=True folds isnan away"
            case ast.ExceptHandler(type=None):
                yield "a bare except hides Ctrl-C"
            case ast.ImportFrom(module="__future__", names=[ast.alias(name="annotations")]) if annotates:
                yield "postponed annotations switch the shape checks off"


@pytest.mark.parametrize("path", [*(path for _, path in FILES), *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_breaks_a_rule(path: Path):
    assert not list(rules_broken(path))


@pytest.mark.parametrize("line", [
    "numpy.allclose(a, b)",
    "f(a, rtol=1)",
    "numba.njit(fastmath=True)",
    "try:\n    f()\nexcept:\n    pass",
    "from __future__ import annotations\nfrom jaxtyping import Float",
])  # fmt: skip
def test_the_rules_can_be_broken(line: str, tmp_path: Path):
    file = tmp_path / "file.py"
    file.write_text(line)
    assert list(rules_broken(file))


def test_a_wrong_import_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(FOLDERS, "kernelproof.spec", str(tmp_path))
    file = tmp_path / "conv.py"
    file.write_text("from kernelproof import kernels\nfrom .window import Window\nfrom .. import models\nimport z3")
    assert list(imports("kernelproof.spec", file)) == [
        "kernelproof.kernels", "kernelproof.spec.window", "kernelproof.models", "z3",
    ]  # fmt: skip

"""What a kernel's answers depend on, as one hash: its source and that of everything it imports from its own package.

Comments, docstrings and formatting do not count, nor does where it is installed or by which Python it is read.
"""

import ast
import functools
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from kernelproof import spec

Find: TypeAlias = Callable[[str], Path | None]
"""The file of a module by its name, None for modules that do not count."""


def kernels_hash(backend: str) -> str:
    """Names this state of a backend's kernels. Nothing of the backend is imported."""
    return source_hash(f"kernelproof.kernels.{backend}", find_in("kernelproof.kernels", Path(__file__).parent))


def specification_hash(operator: str) -> str:
    """Names this state of what an operator means."""
    return _specification_hash(spec.find(operator).__module__)


@functools.cache
def _specification_hash(module: str) -> str:
    return source_hash(module, find_in("kernelproof.spec", Path(spec.__file__).parent))


def source_hash(module: str, find: Find) -> str:
    """Names this state of a module and of all that it imports, directly or not, where `find` knows a file."""
    waiting, states = [module], dict[str, bytes]()
    while waiting:
        name = waiting.pop()
        path = None if name in states else find(name)
        if path is None:
            continue
        if path.suffix == ".py":
            tree = ast.parse(path.read_bytes())
            states[name] = ascii(_meaning(tree)).encode()
            waiting += _imports(tree, name if path.name == "__init__.py" else name.rpartition(".")[0])
        else:
            states[name] = path.read_bytes()
    digest = hashlib.sha256()
    for name, state in sorted(states.items()):
        digest.update(f"{name} {len(state)}\0".encode() + state)
    return digest.hexdigest()


def find_in(package: str, folder: Path) -> Find:
    """Finds the modules of one package in its folder without importing anything."""

    def find(name: str) -> Path | None:
        if not f"{name}.".startswith(f"{package}."):
            return None
        inside = folder.joinpath(*name[len(package) + 1 :].split("."))
        return next(
            (path for path in (inside / "__init__.py", inside.with_name(f"{inside.name}.py")) if path.is_file()), None
        )

    return find


def _imports(tree: ast.Module, here: str) -> Iterator[str]:
    """What the module imports: of `from a import b` both a and a.b, since b may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = here.split(".")[: 1 - node.level or None] if node.level else []
            origin = ".".join([*start, *([node.module] if node.module else [])])
            yield origin
            yield from (f"{origin}.{each.name}" for each in node.names)


def _meaning(node: Any) -> Any:
    """The syntax tree as plain tuples, without docstrings and empty fields, of which newer Pythons have more."""
    if isinstance(node, list):
        return [_meaning(each) for each in node if not _is_text(each)]
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
        return (type(node).__name__, *((name, _meaning(value)) for name, value in fields))
    return node


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)

"""The command line: `kernelproof --help`."""

import importlib
import json as json_format
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal, TypeAlias

import cyclopts
from rich.console import Console
from rich.markup import escape

from kernelproof.models.host import write_whole
from kernelproof.spec.errors import KernelproofError, ParameterError

BackendName: TypeAlias = Literal["cpu", "cuda"]

PROVEN, REFUTED, WRONG_USAGE, NOTHING_CHECKED = 0, 1, 2, 3

app = cyclopts.App(
    name="kernelproof",
    help="The reference standard for CNN operators: specifications, proven kernels, proofs.",
    suppress_keyboard_interrupt=False,  # kernelproof.__main__ hears it.
)
screen = Console(highlight=False, soft_wrap=True, emoji=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

COMMANDS = {
    "check-certificate": (
        "report_files:check_certificate",
        "Check a certificate against the kernel's and specification's present source.\n\n"
        "Exit status: 0 it holds, 1 something has changed or is refuted, 2 wrong usage.",
    ),
    "demo": (
        "demo:run",
        "Prove the kernels, train CNN2 on handwritten digits, export it to ONNX, compare, and write a page about it.",
    ),
    "exhaust": (
        "exhaust_command:run",
        "Hold a kernel to the exact law on every configuration of its operator up to a size, the smallest first.\n\n"
        "It may be stopped at any time: the same command goes on where it was. "
        "Exit status: 0 all hold, 1 refuted, 2 wrong usage, 3 nothing checked.",
    ),
    "export": (
        "model_commands:export",
        "Write a model as an ONNX file (opset 18), checked in full; the batch size stays open.",
    ),
    "info": (
        "info_command:info",
        "Show versions, CPU threads, GPU and the kernels' certificates: what to send along with a report.",
    ),
    "plan": (
        "plan_command:plan",
        "Show which algorithm computes a convolution or its gradient on this CPU, why, and what the others would cost."
        "\n\nWith --backend cuda: which kernels are launched for it on a GPU, and the bytes of workspace that they "
        "take.\n\nExit status: 0 told, 1 an algorithm is refuted, 2 wrong usage.",
    ),
    "replay": (
        "replay_command:replay",
        "Rerun cases that verify saved against the kernels as they are now, a line for each.\n\n"
        "Exit status: 0 all hold now, 1 some do not, 2 wrong usage, 3 nothing checked.",
    ),
    "report": (
        "report_command:report",
        "Show reports that verify wrote with --json, several shards of one run as one; nothing is run.\n\n"
        "Exit status: 0 proven, 1 refuted, 2 wrong usage, 3 nothing checked, or shards of the run are missing.",
    ),
    "scoreboard": (
        "scoreboard_command:board",
        "Hold everybody's operators to the laws: PyTorch, ONNX Runtime, onnx, JAX, tinygrad, as far as they are "
        "installed.\n\nThe exit status is 0 whoever is refuted, 2 for wrong usage.",
    ),
    "summary": (
        "model_commands:summary",
        "Show a model's layers: output shape, parameters, multiply-adds and receptive field of each.",
    ),
    "train": (
        "model_commands:train",
        "Train a model on the bundled handwritten digits (1,797 images of 8x8 pixels) and save its parameters.",
    ),
    "verify": (
        "verify_command:verify",
        "Hold a kernel to every law of its operator: it is proven, or refuted with the smallest case that fails.\n\n"
        "Exit status: 0 proven, 1 refuted, 2 wrong usage, 3 nothing checked.",
    ),
}
"""Where each command is, imported when it is run, and what its help says first: its docstring, which a test holds."""

for _name, (_place, _help) in COMMANDS.items():
    app.command(f"kernelproof.{_place}", name=_name, help=_help)


def run() -> int:
    """Run one command. Exit status: 0 done or proven, 1 refuted, 2 wrong usage, 3 nothing checked."""
    # Not in the caller's folder.
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(Path(tempfile.gettempdir()) / "kernelproof-hypothesis"))
    try:
        status = app(exit_on_error=False, print_error=False, result_action="return_value")
    except cyclopts.CycloptsError as error:
        errors.print(f"[red]kernelproof:[/] {escape(str(error))}\nSee: kernelproof --help")
        return WRONG_USAGE
    except KernelproofError as error:
        errors.print(str(error), markup=False, style="red")
        return WRONG_USAGE
    except BrokenPipeError:
        # Whoever read the output has what it wanted; Python would complain again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PROVEN
    except (OSError, MemoryError) as error:
        errors.print(f"kernelproof: {str(error) or 'out of memory'}", markup=False)
        return WRONG_USAGE
    return status if isinstance(status, int) else PROVEN


def check_writable(command: str, *paths: Path | None) -> None:
    """Every file can be written, before any work; raises ParameterError."""
    for path in paths:
        if path is None or str(path) == "-":
            continue
        if path.is_dir():
            raise ParameterError(command, f"file {str(path)!r}, a folder", "the name of a file", "Add one to it.")
        if path.exists() and not path.is_file():
            # What is written is renamed to it: a device would be a file then, for everybody.
            raise ParameterError(command, f"file {str(path)!r}, a device or pipe", "a file", "Name another.")
        if not os.access(path.absolute().parent, os.W_OK):
            raise ParameterError(command, f"file {str(path)!r}", "a folder that can be written to", "Make its folder.")


def check_folder(command: str, path: Path) -> None:
    """The folder can be written to, or made; raises ParameterError."""
    there = path.absolute()
    while not there.exists() and there.parent != there:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ParameterError(command, f"folder {str(path)!r}", "one that can be written to", "Name another.")


def imported(name: str, command: str, what: str) -> Any:
    """The object called package.module:attribute, looked for in the present folder too; raises ParameterError."""
    module, colon, attribute = name.partition(":")
    if not colon or not attribute:
        raise ParameterError(command, f"{what} {name!r}", "package.module:name", "Write for example mykernels:conv2d.")
    sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ParameterError(
            command, f"{what} {name!r}: {error}", "a module that Python finds", "Run in its folder, or install it."
        ) from error
    except (Exception, SystemExit) as error:  # Whatever its author's code does: nothing of it is a verdict.
        raise ParameterError(
            command, f"{what} {name!r}: importing {module} raises {type(error).__name__}: {error}",
            "a module that can be imported", f'Mend it: python -c "import {module}" shows where.',
        ) from error  # fmt: skip
    named = attribute.removesuffix("()")  # An object that no module has is its class, called.
    if not hasattr(found, named):
        raise ParameterError(
            command, f"{what} {name!r}", f"a name that {module} has", "Correct what follows the colon."
        )
    if named == attribute:
        return getattr(found, named)
    try:
        return getattr(found, named)()
    except Exception as error:
        raise ParameterError(
            command, f"{what} {name!r}: {type(error).__name__}: {error}", "a class that needs no arguments",
            "Name an object of it in the module.",
        ) from error  # fmt: skip


def write_json(data: dict[str, Any], path: Path) -> None:
    text = json_format.dumps(data, indent=2)
    if str(path) == "-":
        print(text)
    else:
        write_whole(path, text.encode())

"""The command line: `kernelproof --help`."""

import importlib
import json as json_format
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

import cyclopts
from cyclopts import App, Parameter
from rich.console import Console
from rich.markup import escape

from kernelproof.models import CNN2Config, TrainConfig, cnn_with_relu_spec
from kernelproof.models.host import write_whole
from kernelproof.spec import ParameterError, SpecChain
from kernelproof.spec.errors import KernelproofError, type_of

BackendName: TypeAlias = Literal["cpu", "cuda"]
AdapterName: TypeAlias = Literal["torch", "onnxruntime", "onnx.reference", "jax", "tinygrad"]
Level: TypeAlias = Literal["L0", "L1", "L2", "L3", "L4", "L5", "L6", "L7", "L8", "L9"]

PROVEN, REFUTED, WRONG_USAGE, NOTHING_CHECKED = 0, 1, 2, 3

app = App(
    name="kernelproof",
    help="The reference standard for CNN operators: specifications, proven kernels, proofs.",
    suppress_keyboard_interrupt=False,  # kernelproof.__main__ hears it.
)
screen = Console(highlight=False, soft_wrap=True, emoji=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


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
    except OSError as error:
        errors.print(f"kernelproof: {error}", markup=False)
        return WRONG_USAGE
    return status if isinstance(status, int) else PROVEN


def _check_writable(command: str, *paths: Path | None) -> None:
    """Every file can be written, before any work; raises ParameterError."""
    for path in paths:
        if path is not None and str(path) != "-" and not os.access(path.absolute().parent, os.W_OK):
            raise ParameterError(command, f"file {str(path)!r}", "a folder that can be written to", "Make its folder.")


@app.command
def demo(out: Path = Path("kernelproof-demo"), *, seed: int = 0, epochs: int = TrainConfig.epochs) -> int:
    """Prove the kernels, train CNN2 on handwritten digits, export it to ONNX, compare, and write a page about it.

    Parameters
    ----------
    out
        Folder for the page, the parameters and the ONNX file; made if it is not there.
    seed
        Draws the problems, the initial parameters and the order of the digits: the same seed, the same result.
    epochs
        How often training sees all digits.
    """
    from .demo import run

    return run(out, seed, epochs, screen)


@app.command
def verify(
    kernel: str | None = None,
    *,
    op: str | None = None,
    backend: BackendName | AdapterName = "cpu",
    level: Annotated[tuple[Level, ...], Parameter(negative=())] = (),
    examples: int = 100,
    seed: int = 0,
    supports: str | None = None,
    dtype: Annotated[tuple[Literal["float32", "float64"], ...], Parameter(negative=())] = (),
    precision: str | None = None,
    layout: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    threads: str | None = None,
    time_limit: float = 120.0,
    shard: str | None = None,
    cases: Path = Path(".kernelproof/cases"),
    workers: int = 1,
    executor: Literal["processes", "dask"] = "processes",
    scheduler: str | None = None,
    json: Annotated[Path | None, Parameter(allow_leading_hyphen=True)] = None,
    html: Path | None = None,
    junit: Path | None = None,
    markdown: Path | None = None,
    certificate: Path | None = None,
) -> int:
    """Hold a kernel to every law of its operator: it is proven, or refuted with the smallest case that fails.

    Exit status: 0 proven, 1 refuted, 2 wrong usage, 3 nothing checked.

    Parameters
    ----------
    kernel
        Yours, as package.module:name: a function with the operator's own arguments, an object with forward and
        backward, or a class like torch.nn.Conv2d. Left out: the backend's kernels.
    op
        The operator: conv2d, conv2d.dx, conv2d.dweight, max_pool2d ... Left out: all of the backend's.
    backend
        Whose kernels to hold to the laws when none of yours is given: this project's, or a framework's that is
        installed (extras torch, onnx, jax, tinygrad).
    level
        Only laws of these levels; may be given several times. Left out: all.
    examples
        Problems drawn for each law.
    seed
        Draws the problems: the same seed, the same problems.
    supports
        What your kernel is written for, as an expression: "stride[0] == stride[1] and groups == 1". Problems outside
        are unsupported, never passed.
    dtype
        The scalar types it takes; may be given several times. Left out: float32.
    precision
        What it keeps of its operands: fp32, 3xtf32, tf32, fp16, bf16. Left out: all bits.
    layout
        The axes of an array that is not in the specification's order, such as x=nhwc, weight=rsck, y=npqk.
    threads
        What tells your kernel a number of threads, as package.module:name, such as torch:set_num_threads. It then has
        to give the same bits on any number.
    time_limit
        Seconds that one check may take, compilation included. Your kernel runs in a process of its own.
    shard
        Hold it to a part of the laws only: 3/16 is the third of every sixteen.
    cases
        Folder where failing cases are saved, for kernelproof replay; the next verify of the kernel tries them first.
    workers
        Processes that share the laws.
    executor
        What shares them out: processes of this machine, or dask (extra kernelproof[dask]).
    scheduler
        Address of a Dask cluster that is running, such as tcp://10.0.0.1:8786. Left out: one is started here.
    json
        Write everything that was found to this file; - for standard output.
    html
        Write it as a page to this file: one file, nothing loaded from elsewhere.
    junit
        Write it as JUnit XML to this file, for CI.
    markdown
        Write it as Markdown to this file, for a pull request.
    certificate
        Write the proof as a certificate to this file, for kernelproof check-certificate.
    """
    from kernelproof.proofs import verify as hold_to_laws
    from kernelproof.proofs.cases import load_all
    from kernelproof.proofs.subject import subject_of

    from .executors import working
    from .replay_command import keep
    from .report_files import write_reports
    from .terminal import show_report, watched

    _check_writable("verify", json, html, junit, markdown, certificate)
    to_stdout = json is not None and str(json) == "-"
    console = errors if to_stdout else screen
    own = kernel is None and backend in get_args(BackendName)
    subject = subject_of(
        backend if kernel is None else imported(kernel, "verify", "kernel"),
        op,
        supports=supports,
        dtypes=dtype or None,
        precision=precision,
        layouts=_layouts(layout),
        threads=threads,
        name=kernel,
    )
    known = load_all(cases)
    with (
        working(workers, executor, scheduler, kernel) as workforce,
        watched(console, subject, level, shard, lines=not subject.unavailable) as progress,
    ):
        report = hold_to_laws(
            subject, level=level or None, examples=examples, seed=seed, progress=progress,
            time_limit=None if own else time_limit, shard=shard, cases=known, executor=workforce,
        )  # fmt: skip
    show_report(console, report)
    keep(console, report, cases)
    if json is not None:
        write_json(report.as_json(), json)
    for path in write_reports(report, html=html, junit=junit, markdown=markdown, certificate=certificate):
        console.print(f"Written: {path}", markup=False)
    return report.exit_status


app.command(
    "kernelproof.report_files:check_certificate",
    name="check-certificate",
    help="Check a certificate against the kernel's and specification's present source.",
)


app.command(
    "kernelproof.scoreboard_command:board", name="scoreboard", help="Hold everybody's operators to the laws: a table."
)
app.command(
    "kernelproof.exhaust_command:run",
    name="exhaust",
    help="Hold a kernel to the exact law on every configuration of its operator up to a size.",
)
app.command("kernelproof.replay_command:replay", help="Rerun saved cases against the kernels as they are now.")
app.command(
    "kernelproof.plan_command:plan",
    help="Show which algorithm computes a convolution on this CPU, why, and what the others would cost.",
)


@app.command
def train(
    model: str = "cnn2",
    out: Path = Path("cnn2.safetensors"),
    *,
    backend: BackendName = "cpu",
    c1: int = 16,
    c2: int = 32,
    epochs: int = TrainConfig.epochs,
    batch_size: int = TrainConfig.batch_size,
    learning_rate: float = TrainConfig.learning_rate,
    momentum: float = TrainConfig.momentum,
    seed: int = 0,
) -> None:
    """Train a model on the bundled handwritten digits (1,797 images of 8x8 pixels) and save its parameters.

    Parameters
    ----------
    model
        cnn2, or a chain of yours for "n 1 8 8" as package.module:chain.
    out
        Where the parameters go, as safetensors under PyTorch's keys.
    backend
        Where it runs.
    c1
        Filters of cnn2's first convolution.
    c2
        Filters of cnn2's second convolution.
    epochs
        How often training sees all digits.
    batch_size
        Images in one step.
    learning_rate
        How far one step goes.
    momentum
        How much of the last step is kept.
    seed
        Draws the split, the initial parameters and the order: the same seed, the same bits.
    """
    from kernelproof.models import evaluate, load_digits, save_checkpoint

    from .terminal import trained

    _check_writable("train", out)
    config = TrainConfig(epochs, batch_size, learning_rate, momentum, seed)
    chain = _chain(model, CNN2Config(c1=c1, c2=c2, image_size=8)).compile(backend)
    learning, held_out = load_digits().split(seed=seed)
    parameters, _ = trained(screen, chain, chain.initialise(seed), learning, config)
    result = evaluate(chain, parameters, held_out.images, held_out.labels)
    save_checkpoint(parameters, out)
    screen.print(f"{result.accuracy:.2%} of {len(held_out)} digits held out are read right; parameters in {out}")
    if model == "cnn2":
        screen.print(f"Export: kernelproof export cnn2 cnn2.onnx --c1 {c1} --c2 {c2} --image-size 8 --parameters {out}")


@app.command
def export(
    model: str,
    out: Path,
    *,
    parameters: Path | None = None,
    c1: int = 32,
    c2: int = 64,
    out_dim: int = 10,
    image_size: int = 28,
    seed: int = 0,
) -> None:
    """Write a model as an ONNX file (opset 18), checked in full; the batch size stays open.

    Parameters
    ----------
    model
        cnn2, or a chain of yours as package.module:chain.
    out
        The ONNX file to write.
    parameters
        A safetensors file as `kernelproof train` saves it. Left out: freshly initialised parameters.
    c1
        Filters of cnn2's first convolution.
    c2
        Filters of cnn2's second convolution.
    out_dim
        Classes that cnn2 tells apart.
    image_size
        Rows and columns of cnn2's images.
    seed
        Draws the fresh parameters.
    """
    from kernelproof.models import load_checkpoint

    _check_writable("export", out)
    chain = _chain(model, CNN2Config(c1=c1, c2=c2, out_dim=out_dim, image_size=image_size))
    own = chain.initialise(seed) if parameters is None else load_checkpoint(chain, parameters)
    chain.to_onnx(own, out)
    origin = f"freshly initialised parameters, seed {seed}" if parameters is None else f"parameters from {parameters}"
    screen.print(f"{out}: {len(chain.steps)} layers, {origin}")


@app.command
def summary(
    model: str = "cnn2",
    *,
    c1: int = 32,
    c2: int = 64,
    out_dim: int = 10,
    image_size: int = 28,
    diagram: Literal["mermaid", "svg"] | None = None,
    json: bool = False,
) -> None:
    """Show a model's layers: output shape, parameters, multiply-adds and receptive field of each.

    Parameters
    ----------
    model
        cnn2, or a chain of yours as package.module:chain.
    c1
        Filters of cnn2's first convolution.
    c2
        Filters of cnn2's second convolution.
    out_dim
        Classes that cnn2 tells apart.
    image_size
        Rows and columns of cnn2's images.
    diagram
        Print the chain drawn in this form instead.
    json
        Print names, shapes and parameters as JSON instead.
    """
    chain = _chain(model, CNN2Config(c1=c1, c2=c2, out_dim=out_dim, image_size=image_size))
    if json:
        shapes = {
            name: [size if isinstance(size, int) else str(size) for size in s] for name, s in chain.shapes.items()
        }
        print(json_format.dumps({"shapes": shapes, "parameters": chain.parameter_shapes}, indent=2))
    else:
        print(chain.summary() if diagram is None else chain.diagram(diagram))


@app.command
def info(*, json: bool = False) -> None:
    """Show versions, CPU threads, GPU and the kernels' certificates: what to send along with a report.

    Parameters
    ----------
    json
        Print it as JSON instead.
    """
    from .terminal import environment, show_environment

    found = environment()
    if json:
        print(json_format.dumps(found, indent=2))
    else:
        show_environment(screen, found)


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
    if not hasattr(found, attribute):
        raise ParameterError(
            command, f"{what} {name!r}", f"a name that {module} has", "Correct what follows the colon."
        )
    return getattr(found, attribute)


def _layouts(layout: tuple[str, ...]) -> dict[str, str]:
    if wrong := [each for each in layout if "=" not in each]:
        raise ParameterError("verify", f"--layout {wrong[0]}", "an array and its axes", "Write for example x=nhwc.")
    return dict(each.split("=", 1) for each in layout)


def _chain(model: str, config: CNN2Config) -> SpecChain:
    """CNN2 by that config, or the caller's own chain; raises ParameterError."""
    if model == "cnn2":
        return cnn_with_relu_spec(config)
    chain = imported(model, "kernelproof", "model")
    if not isinstance(chain, SpecChain):
        raise ParameterError(
            "kernelproof", f"model {model!r} is {type_of(chain)}", "cnn2 or a SpecChain", "Name the chain."
        )
    return chain


def write_json(data: dict[str, Any], path: Path) -> None:
    text = json_format.dumps(data, indent=2)
    if str(path) == "-":
        print(text)
    else:
        write_whole(path, text.encode())

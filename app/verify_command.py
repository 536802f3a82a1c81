"""`kernelproof verify`: a kernel held to every law of its operator."""

from pathlib import Path
from typing import Annotated, Literal, TypeAlias, get_args

from cyclopts import Parameter

from kernelproof.spec import ParameterError

from .command_line import BackendName, check_folder, check_writable, errors, imported, screen, write_json

AdapterName: TypeAlias = Literal["torch", "onnxruntime", "onnx.reference", "jax", "tinygrad"]
Level: TypeAlias = Literal["L0", "L1", "L2", "L3", "L4", "L5", "L6", "L7", "L8", "L9"]


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
    museum: Annotated[bool, Parameter(negative=())] = False,
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
        What it keeps of its operands: fp32, f16x3, 3xtf32, tf32, fp16, bf16; winograd2 or winograd4 for its tiles, fft
        for its transforms. Left out: all bits. With --backend cuda: the precision it is asked for, fast, tf32, fp16 or
        bf16.
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
    museum
        Say too how many real faults, planted in other kernels, the same run finds: how strong it is. One that it does
        not find takes as long as the run itself.
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

    check_writable("verify", json, html, junit, markdown, certificate)
    check_folder("verify", cases)
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
            time_limit=None if own else time_limit, shard=shard, cases=known, museum=museum,
            executor=workforce,
        )  # fmt: skip
    show_report(console, report)
    keep(console, report, cases)
    if json is not None:
        write_json(report.as_json(), json)
    for path in write_reports(report, html=html, junit=junit, markdown=markdown, certificate=certificate):
        console.print(f"Written: {path}", markup=False)
    return report.exit_status


def _layouts(layout: tuple[str, ...]) -> dict[str, str]:
    if wrong := [each for each in layout if "=" not in each]:
        raise ParameterError("verify", f"--layout {wrong[0]}", "an array and its axes", "Write for example x=nhwc.")
    return dict(each.split("=", 1) for each in layout)

"""The main job: kernels proven, gradients checked exactly, CNN2 trained on real digits, exported, compared, shown."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kernelproof.kernels import Backend, backend
from kernelproof.models import (
    CNN2Config,
    CNN2Spec,
    Digits,
    Evaluation,
    Progress,
    TrainConfig,
    cnn_with_relu_spec,
    evaluate,
    load_digits,
    save_checkpoint,
)
from kernelproof.models.host import write_whole
from kernelproof.proofs import Report, verify
from kernelproof.proofs.chain_bound import chain_bound
from kernelproof.proofs.exact_gradient import exact_gradient, rational
from kernelproof.proofs.subject import subject_of
from kernelproof.spec import SpecChain, UnsupportedError
from kernelproof.spec.parameters import Parameters

from .command_line import screen
from .page import page
from .terminal import show_report, trained, watched

EXAMPLES = 20
"""Problems for each law: a demonstration; `kernelproof verify` draws 100."""

CHECKED = CNN2Config(c1=2, c2=3, out_dim=4, image_size=8)
"""The CNN2 whose gradients are compared with the exact derivative, entry by entry."""

TRAINED = CNN2Config(c1=16, c2=32, image_size=8)
"""The CNN2 that learns the digits."""


@dataclass(frozen=True)
class Outcome:
    """Everything that the demonstration found, as the page shows it."""

    chain: SpecChain
    report: Report
    gradients: Mapping[str, int]
    steps: list[Progress]
    held_out: Digits
    evaluation: Evaluation
    compared: int
    worst_ratio: float


def run(out: Path = Path("kernelproof-demo"), *, seed: int = 0, epochs: int = TrainConfig.epochs) -> int:
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
    config = TrainConfig(epochs=epochs, seed=seed)
    if missing := [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]:
        raise UnsupportedError(
            "demo", f"no {' and no '.join(missing)} in this environment", "the extra kernelproof[onnx]",
            "Install it: pip install 'kernelproof[onnx]'.",
        )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    cpu = backend("cpu")
    screen.rule("1  the CPU kernels against their specifications", align="left")
    subject = subject_of(cpu)
    with watched(screen, subject, lines=False) as progress:
        report = verify(subject, examples=EXAMPLES, seed=seed, progress=progress)
    show_report(screen, report)
    if report.verdict != "proven":
        return report.exit_status

    screen.rule("2  CNN2's gradients against the exact derivative", align="left")
    gradients = check_gradients(cpu, seed)
    screen.print(f"{sum(gradients.values())} partial derivatives equal, as rational numbers: {', '.join(gradients)}")

    screen.rule("3  CNN2 learns handwritten digits", align="left")
    chain = cnn_with_relu_spec(TRAINED)
    learning, held_out = load_digits().split(seed=seed)
    parameters, steps = trained(screen, chain.compile(cpu), chain.initialise(seed), learning, config)
    evaluation = evaluate(chain.compile(cpu), parameters, held_out.images, held_out.labels)
    screen.print(f"{evaluation.accuracy:.2%} of {len(held_out)} digits held out are read right")

    screen.rule("4  the same network in ONNX Runtime", align="left")
    save_checkpoint(parameters, out / "cnn2.safetensors")
    compared, worst_ratio = compare_with_onnxruntime(chain, parameters, held_out.images, out / "cnn2.onnx")
    screen.print(f"{compared:,} logits compared: the largest difference is {worst_ratio:.2%} of what rounding allows")
    if worst_ratio > 1:
        screen.print("[red]ONNX Runtime and the specification differ by more than rounding.[/]")
        return 1

    outcome = Outcome(chain, report, gradients, steps, held_out, evaluation, compared, worst_ratio)
    write_whole(out / "index.html", page(outcome).encode())
    screen.rule("proven", align="left")
    screen.print(
        f"- {len(report.laws)} laws hold for the CPU kernels, on {report.problems:,} problems\n"
        f"- {len(report.theorems)} theorems about sizes hold for every size\n"
        f"- every one of {sum(gradients.values())} gradients of CNN2 is the exact derivative\n"
        f"- CNN2 reads {evaluation.accuracy:.2%} of unseen digits, and ONNX Runtime agrees on all {compared:,} logits\n"
        f"Page:       {out / 'index.html'}\nModel:      {out / 'cnn2.onnx'}\nParameters: {out / 'cnn2.safetensors'}",
        markup=False,
    )
    return 0


def check_gradients(perform: Backend, seed: int) -> dict[str, int]:
    """Every partial derivative of a CNN2 on whole numbers, from the kernels, equals the exact one; their count by name.

    Raises ArithmeticError at the first parameter where one differs.
    """
    generator, cnn = np.random.default_rng(seed), CNN2Spec(CHECKED)
    whole = {key: generator.integers(-2, 3, shape) for key, shape in CHECKED.parameter_shapes().items()}
    x, dlogits = generator.integers(-2, 3, (1, 1, 8, 8)), generator.integers(-2, 3, (1, CHECKED.out_dim))

    def loss(arguments: Mapping[str, np.ndarray]) -> Any:
        parameters = {key: array for key, array in arguments.items() if key != "x"}
        return (rational(dlogits) * cnn.forward(parameters, arguments["x"]).logits).sum()

    exact = exact_gradient(loss, {**whole, "x": x})
    floats = {key: array.astype(np.float32) for key, array in whole.items()}
    activations = cnn.forward(floats, x.astype(np.float32), perform)
    came = cnn.backward(floats, activations, dlogits.astype(np.float32), perform)
    for key, gradient in {**came.parameters, "x": came.x}.items():
        if not np.array_equal(rational(gradient), exact[key]):
            raise ArithmeticError(f"CNN2: the gradient of {key} is not the exact derivative")
    return {key: gradient.size for key, gradient in exact.items()}


def compare_with_onnxruntime(
    chain: SpecChain, parameters: Parameters, images: np.ndarray, path: Path
) -> tuple[int, float]:
    """Export, run in ONNX Runtime, compare with the specification in float64: how many numbers, worst error / bound."""
    # Here and not above: loading ONNX Runtime takes longer than all other imports together.
    import onnxruntime

    chain.to_onnx(parameters, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (came,) = session.run(None, {"x": images})
    logits, allowed = chain_bound(chain, parameters, images, np.float32)
    return logits.size, float((np.abs(came - logits) / allowed).max())

"""`kernelproof train`, `export` and `summary`: CNN2, or a chain of the caller's."""

import json as json_format
from pathlib import Path
from typing import Literal

from kernelproof.models import CNN2Config, TrainConfig, cnn_with_relu_spec
from kernelproof.spec import ParameterError, SpecChain
from kernelproof.spec.errors import type_of

from .command_line import BackendName, check_writable, imported, screen


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

    check_writable("train", out)
    config = TrainConfig(epochs, batch_size, learning_rate, momentum, seed)
    chain = _chain(model, CNN2Config(c1=c1, c2=c2, image_size=8)).compile(backend)
    learning, held_out = load_digits().split(seed=seed)
    parameters, _ = trained(screen, chain, chain.initialise(seed), learning, config)
    result = evaluate(chain, parameters, held_out.images, held_out.labels)
    save_checkpoint(parameters, out)
    screen.print(f"{result.accuracy:.2%} of {len(held_out)} digits held out are read right; parameters in {out}")
    if model == "cnn2":
        screen.print(f"Export: kernelproof export cnn2 cnn2.onnx --c1 {c1} --c2 {c2} --image-size 8 --parameters {out}")


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

    check_writable("export", out)
    chain = _chain(model, CNN2Config(c1=c1, c2=c2, out_dim=out_dim, image_size=image_size))
    own = chain.initialise(seed) if parameters is None else load_checkpoint(chain, parameters)
    chain.to_onnx(own, out)
    origin = f"freshly initialised parameters, seed {seed}" if parameters is None else f"parameters from {parameters}"
    screen.print(f"{out}: {len(chain.steps)} layers, {origin}")


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

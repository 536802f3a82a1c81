"""Whole CNN2: a step of training as `kernelproof.models.train` takes it, and inference, beside the same in others."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from peers import installed, same
from timing import Samples, interleaved

from kernelproof import SpecChain
from kernelproof.models import CNN2Config, TrainConfig, cnn_with_relu_spec, train
from kernelproof.proofs.chain_bound import chain_bound

STEP = {"torch": 6.0, "torch channels-last": 3.8}
"""How many times faster than each a training step is to be."""

RATE, MOMENTUM = 0.01, 0.9


def networks(threads: int, rounds: int, samples: Samples) -> list[dict[str, Any]]:
    """Training of 64 images, inference of 64 and of one."""
    chain = cnn_with_relu_spec(CNN2Config())
    rows = []
    for name, images, makers in (
        ("CNN2 training step", 64, STEPS), ("CNN2 inference", 64, INFERENCES), ("CNN2 inference", 1, INFERENCES)
    ):  # fmt: skip
        x, labels = batch(images)
        _check(chain, x)
        calls = {
            who: make(chain, x, labels, threads)
            for who, make in makers.items()
            if who.startswith("ours") or who.split()[0] in installed()
        }
        first = {who: np.asarray(call()) for who, call in calls.items()}
        if wrong := [who for who, result in first.items() if not same(first["ours strict"], result)]:
            raise ValueError(f"{name}: {', '.join(wrong)} does not compute what ours does")
        timed = {who: asdict(each) for who, each in interleaved(calls, rounds, samples).items()}
        row = {
            "name": name, "text": f"{images} of 1x28x28", "threads": threads,
            "ours": {who.removeprefix("ours "): each for who, each in timed.items() if who.startswith("ours")},
            "peers": {who: each for who, each in timed.items() if not who.startswith("ours")},
            "goals": STEP if makers is STEPS else {},
        }  # fmt: skip
        print(f"{name:<20} {images:>3}", *(f"{who} {1e3 * each['seconds']:.3f} ms" for who, each in timed.items()))
        rows.append(row)
    return rows


def batch(images: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.standard_normal((images, 1, 28, 28), np.float32), generator.integers(0, 10, images)


def _check(chain: SpecChain, x: np.ndarray) -> None:
    """Raises ValueError if our logits are beyond what rounding allows of the whole chain."""
    parameters = chain.initialise(0)
    right, allowed = chain_bound(chain, parameters, x, np.float32)
    if (np.abs(chain.compile("cpu").forward(parameters, x) - right) > allowed).any():
        raise ValueError("CNN2's logits are beyond their bound")


def our_step(precision: str) -> Callable[..., Callable[[], float]]:
    """Shuffled batch, forward, loss, gradients, update, accuracy: one step of `train`."""

    def make(chain: SpecChain, x: np.ndarray, labels: np.ndarray, threads: int) -> Callable[[], float]:
        config = TrainConfig(epochs=2**31 - 1, batch_size=len(x), learning_rate=RATE, momentum=MOMENTUM)
        compiled = chain.compile("cpu", precision=precision)
        steps = train(compiled, chain.initialise(0), x, labels, config)
        return lambda: next(steps).loss

    return make


def our_inference(precision: str) -> Callable[..., Callable[[], Any]]:
    def make(chain: SpecChain, x: np.ndarray, labels: np.ndarray, threads: int) -> Callable[[], Any]:
        compiled, parameters = chain.compile("cpu", precision=precision), chain.initialise(0)
        return lambda: compiled.forward(parameters, x)

    return make


def _torch_model(chain: SpecChain, channels_last: bool, threads: int) -> Any:
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(threads)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3136, 10),
    )  # fmt: skip
    with torch.no_grad():
        for parameter, array in zip(model.parameters(), chain.initialise(0).values(), strict=True):
            parameter.copy_(torch.from_numpy(array.copy()))
    return model.to(memory_format=torch.channels_last) if channels_last else model


def torch_step(channels_last: bool) -> Callable[..., Callable[[], float]]:
    """The same step in PyTorch: shuffled batch, forward, loss, gradients, update, accuracy."""

    def make(chain: SpecChain, x: np.ndarray, labels: np.ndarray, threads: int) -> Callable[[], float]:
        import torch  # pyright: ignore[reportMissingImports]

        model = _torch_model(chain, channels_last, threads)
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
        images, target = torch.from_numpy(x.copy()), torch.from_numpy(labels)
        images = images.to(memory_format=torch.channels_last) if channels_last else images

        def step() -> float:
            shuffled = torch.randperm(len(images))
            optimizer.zero_grad(set_to_none=True)
            logits = model(images[shuffled])
            loss = torch.nn.functional.cross_entropy(logits, target[shuffled])
            loss.backward()
            optimizer.step()
            float((logits.argmax(1) == target[shuffled]).float().mean())
            return loss.item()

        return step

    return make


def torch_inference(channels_last: bool) -> Callable[..., Callable[[], Any]]:
    def make(chain: SpecChain, x: np.ndarray, labels: np.ndarray, threads: int) -> Callable[[], Any]:
        import torch  # pyright: ignore[reportMissingImports]

        model, images = _torch_model(chain, channels_last, threads), torch.from_numpy(x.copy())
        images = images.to(memory_format=torch.channels_last) if channels_last else images
        return torch.inference_mode()(lambda: model(images).numpy())

    return make


def onnxruntime_inference(chain: SpecChain, x: np.ndarray, labels: np.ndarray, threads: int) -> Callable[[], Any]:
    import onnxruntime  # pyright: ignore[reportMissingImports]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    model = chain.to_onnx(chain.initialise(0)).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})[0]


def _jax_logits(parameters: Mapping[str, Any], x: Any) -> Any:
    from kernelproof.proofs.adapters.jax import FORWARDS

    for which in (1, 2):
        weight, bias = parameters[f"conv{which}.weight"], parameters[f"conv{which}.bias"]
        geometry = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)}
        x = FORWARDS["relu"](FORWARDS["conv2d"](x, weight, bias, **geometry, groups=1))
        x = FORWARDS["max_pool2d"](x, (2, 2), stride=(2, 2), padding=((0, 0), (0, 0)), dilation=(1, 1), ceil_mode=False)
    return FORWARDS["linear"](FORWARDS["flatten"](x), parameters["fc1.weight"], parameters["fc1.bias"])


def jax_step(chain: SpecChain, x: np.ndarray, labels: np.ndarray, threads: int) -> Callable[[], float]:
    """The same step as one function that XLA compiles, the old parameters' memory given back to it."""
    import jax  # pyright: ignore[reportMissingImports]

    from kernelproof.proofs.adapters.jax import cross_entropy

    def step(state: Any, shuffled: Any) -> Any:
        parameters, velocity = state

        def loss_of(parameters: Any) -> Any:
            logits = _jax_logits(parameters, images[shuffled])
            return cross_entropy(logits, target[shuffled]), (logits.argmax(1) == target[shuffled]).mean()

        (loss, _), gradients = jax.value_and_grad(loss_of, has_aux=True)(parameters)
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, gradients)
        return (jax.tree.map(lambda p, v: p - RATE * v, parameters, velocity), velocity), loss

    images, target = jax.numpy.asarray(x), jax.numpy.asarray(labels)
    parameters = {key: jax.numpy.asarray(each) for key, each in chain.initialise(0).items()}
    state = [(parameters, jax.tree.map(jax.numpy.zeros_like, parameters))]
    compiled, generator = jax.jit(step, donate_argnums=0), np.random.default_rng(0)

    def call() -> float:
        state[0], loss = compiled(state[0], generator.permutation(len(x)))
        return float(loss)

    return call


def jax_inference(chain: SpecChain, x: np.ndarray, labels: np.ndarray, threads: int) -> Callable[[], Any]:
    import jax  # pyright: ignore[reportMissingImports]

    compiled = jax.jit(_jax_logits)
    parameters = {key: jax.numpy.asarray(each) for key, each in chain.initialise(0).items()}
    images = jax.numpy.asarray(x)
    return lambda: np.asarray(compiled(parameters, images))


STEPS: dict[str, Callable[..., Callable[[], Any]]] = {
    "ours strict": our_step("strict"), "ours fast": our_step("fast"), "torch": torch_step(False),
    "torch channels-last": torch_step(True), "jax": jax_step,
}  # fmt: skip
INFERENCES: dict[str, Callable[..., Callable[[], Any]]] = {
    "ours strict": our_inference("strict"), "ours fast": our_inference("fast"), "torch": torch_inference(False),
    "torch channels-last": torch_inference(True), "onnxruntime": onnxruntime_inference, "jax": jax_inference,
}  # fmt: skip

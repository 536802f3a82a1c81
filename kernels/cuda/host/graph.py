"""A training step as one CUDA graph: its launches are recorded once and replayed by one call, on torch tensors."""

from collections.abc import Mapping
from typing import Any

from kernelproof import spec
from kernelproof.kernels.contract import KERNELS
from kernelproof.spec.chain import SpecChain
from kernelproof.spec.errors import ParameterError, ShapeError, UnsupportedError

from .arrays import SIMULATED, DeviceArray, library_of, taken

if not SIMULATED:
    from ..cuda_cores.update import update


def _is_on_a_gpu(array: Any) -> bool:
    return library_of(array) == "torch" and array.is_cuda


class TrainingStep:
    """One step of stochastic gradient descent with momentum of a chain that is compiled for CUDA.

    `step(x, target)` copies the batch in, replays the graph and returns the batch's loss, a tensor that the next call
    overwrites. `parameters` and `velocity` are updated in place. Shapes and rates are those of the recording; classes
    are checked there and not again, since looking at them would make every step wait.

    Raises UnsupportedError for what is no chain of torch tensors on one GPU, ParameterError for another `half`, and
    what the chain's operators raise; a step raises ShapeError for a batch of other shapes.

    Mixed precision: with `half`, torch.float16 or torch.bfloat16, the chain sees copies of that type, and gradients are
    taken at `loss_scale`, a tensor that starts at 2**16. A step whose gradients overflow changes nothing but the scale,
    which is halved down to 1; INTERVAL steps without one double it, up to 2**126. Look at it now and then: at 1 all
    steps may be skipped. Source: as for `kernelproof.models.LossScale`.
    """

    INTERVAL = 2000

    def __init__(
        self, chain: SpecChain, parameters: Mapping[str, Any], x: Any, target: Any, *, learning_rate: float,
        momentum: float, half: Any = None,
    ) -> None:  # fmt: skip
        arrays = (x, target, *parameters.values())
        if SIMULATED or getattr(chain.perform, "name", None) != "cuda" or not all(map(_is_on_a_gpu, arrays)):
            raise UnsupportedError(
                "TrainingStep", "no chain of torch tensors on a GPU", "a chain compiled for CUDA, torch tensors",
                "Use chain.compile('cuda') and tensors on the GPU.",
            )  # fmt: skip
        devices = {str(each.device) for each in arrays}
        if len(devices) > 1:
            raise UnsupportedError(
                "TrainingStep", f"tensors on {', '.join(sorted(devices))}", "all on one GPU", "Move them first."
            )
        import torch  # pyright: ignore[reportMissingImports]

        if half not in (None, torch.float16, torch.bfloat16):
            raise ParameterError("TrainingStep", f"half={half}", "torch.float16, torch.bfloat16 or None", "Pass one.")
        self._chain, self._rates, self._half = chain, (learning_rate, momentum), half
        self._x, self._target = x.clone(), target.clone()
        self.loss_scale = torch.full((), 1.0 if half is None else 2.0**16, device=x.device)
        self._since = torch.zeros((), dtype=torch.int32, device=x.device)
        self.parameters = {key: each.clone() for key, each in parameters.items()}
        self.velocity = {key: torch.zeros_like(each) for key, each in self.parameters.items()}
        with torch.cuda.device(x.device):  # Its stream is the one that is recorded, whichever GPU is current.
            self._record()
        for key, each in parameters.items():
            self.parameters[key].copy_(each)
            self.velocity[key].zero_()
        self.loss_scale.fill_(1.0 if half is None else 2.0**16)
        self._since.zero_()

    def _record(self) -> None:
        """Take two steps, of which the second is only written down."""
        import torch  # pyright: ignore[reportMissingImports]

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            logits = self._chain.forward(self._taken(self.parameters), taken(self._x))
            self._chain.perform(spec.cross_entropy, logits, taken(self._target))  # Checks the classes.
            self._step()  # Compiles: nothing may be loaded while a graph is recorded.
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream):  # torch's own stream for this is on the GPU it met first.
            self._loss = self._step()

    def __call__(self, x: Any, target: Any) -> Any:
        """The loss of the batch before the step."""
        for name, came, recorded in (("x", x, self._x), ("target", target, self._target)):
            if came.shape != recorded.shape:  # Copied in, one image would be spread over the whole batch.
                needed = f"{tuple(recorded.shape)}, as it was recorded"
                raise ShapeError(
                    "TrainingStep", f"{name} of shape {tuple(came.shape)}", needed, "Make another step for this shape."
                )
        self._x.copy_(x)
        self._target.copy_(target)
        self._graph.replay()
        return self._loss

    @staticmethod
    def _taken(arrays: Mapping[str, Any]) -> dict[str, DeviceArray]:
        return {key: taken(each) for key, each in arrays.items()}

    def _step(self) -> Any:
        if self._half is None:
            logits, backward = self._chain.vjp(self._taken(self.parameters), taken(self._x), of_x=False)
            loss, dlogits = self._loss_of(logits)
            self._move(backward(dlogits).parameters)
            return loss.owner
        return self._half_step().owner

    def _half_step(self) -> DeviceArray:
        """A step through copies in half precision, undone if a gradient overflowed: nothing waits to know."""
        import torch  # pyright: ignore[reportMissingImports]

        copies = {key: each.to(self._half) for key, each in self.parameters.items()}
        logits, backward = self._chain.vjp(copies, self._x.to(self._half), of_x=False)
        loss, dlogits = self._loss_of(taken(logits.float()))
        scaled = backward((dlogits.owner * self.loss_scale).to(self._half)).parameters
        gradients = {key: each.float() / self.loss_scale for key, each in scaled.items()}
        finite = torch.stack([each.isfinite().all() for each in gradients.values()]).all()
        state = [*self.parameters.values(), *self.velocity.values()]
        before = [each.clone() for each in state]
        self._move(self._taken(gradients))
        for each, old in zip(state, before, strict=True):
            each.copy_(torch.where(finite, each, old))
        self._since.copy_(torch.where(finite, self._since + 1, 0))
        grown = self._since == self.INTERVAL
        factor = torch.where(finite, torch.where(grown, 2.0, 1.0), 0.5)
        self.loss_scale.copy_((self.loss_scale * factor).clamp(min=1.0, max=2.0**126))
        self._since.masked_fill_(grown, 0)
        return loss

    def _loss_of(self, logits: DeviceArray) -> tuple[DeviceArray, DeviceArray]:
        """The loss and its gradient, past the doors, which would look at the classes on the host."""
        loss, dlogits = (
            KERNELS[name, "cuda"](logits, taken(self._target)) for name in ("cross_entropy", "cross_entropy_dlogits")
        )
        return loss, dlogits

    def _move(self, gradients: Mapping[str, DeviceArray]) -> None:
        parameters, velocity = self._taken(self.parameters), self._taken(self.velocity)
        update([(each, gradients[key], velocity[key]) for key, each in parameters.items()], *self._rates)

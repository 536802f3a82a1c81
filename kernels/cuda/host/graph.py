"""A training step as one CUDA graph: its launches are recorded once and replayed by one call, on torch tensors."""

from collections.abc import Mapping
from typing import Any

from kernelproof import spec
from kernelproof.kernels.contract import KERNELS
from kernelproof.spec.chain import SpecChain
from kernelproof.spec.errors import UnsupportedError

from .arrays import SIMULATED, DeviceArray, taken

if not SIMULATED:
    from ..cuda_cores.update import update


class TrainingStep:
    """One step of stochastic gradient descent with momentum of a chain that is compiled for CUDA.

    `step(x, target)` copies the batch in, replays the graph and returns the batch's loss, a tensor that the next call
    overwrites. `parameters` and `velocity` are updated in place. Shapes and rates are those of the recording; classes
    are checked there and not again, since looking at them would make every step wait.
    """

    def __init__(
        self, chain: SpecChain, parameters: Mapping[str, Any], x: Any, target: Any, *, learning_rate: float,
        momentum: float,
    ) -> None:  # fmt: skip
        if SIMULATED or getattr(chain.perform, "name", None) != "cuda" or not hasattr(x, "data_ptr"):
            raise UnsupportedError(
                "TrainingStep", "no chain of torch tensors on a GPU", "a chain compiled for CUDA, torch tensors",
                "Use chain.compile('cuda') and tensors on the GPU.",
            )  # fmt: skip
        import torch  # pyright: ignore[reportMissingImports]

        self._chain, self._rates = chain, (learning_rate, momentum)
        self._x, self._target = x.clone(), target.clone()
        self.parameters = {key: each.clone() for key, each in parameters.items()}
        self.velocity = {key: torch.zeros_like(each) for key, each in self.parameters.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            logits = chain.forward(self._taken(self.parameters), taken(self._x))
            chain.perform(spec.cross_entropy, logits, taken(self._target))  # Checks the classes.
            self._step()  # Compiles: nothing may be loaded while a graph is recorded.
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._loss = self._step()
        for key, each in parameters.items():
            self.parameters[key].copy_(each)
            self.velocity[key].zero_()

    def __call__(self, x: Any, target: Any) -> Any:
        """The loss of the batch before the step."""
        self._x.copy_(x)
        self._target.copy_(target)
        self._graph.replay()
        return self._loss

    @staticmethod
    def _taken(arrays: Mapping[str, Any]) -> dict[str, DeviceArray]:
        return {key: taken(each) for key, each in arrays.items()}

    def _step(self) -> Any:
        parameters, velocity, target = self._taken(self.parameters), self._taken(self.velocity), taken(self._target)
        logits, backward = self._chain.vjp(parameters, taken(self._x), of_x=False)
        # Past the doors, which would look at the classes on the host.
        loss, dlogits = (KERNELS[name, "cuda"](logits, target) for name in ("cross_entropy", "cross_entropy_dlogits"))
        gradients = backward(dlogits).parameters
        update(
            [(parameter, gradients[key], velocity[key]) for key, parameter in parameters.items()], *self._rates
        )  # fmt: skip
        return loss.owner

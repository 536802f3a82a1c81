"""A chain's batches like one before: forward and backward as one CUDA graph each.

What backward reads of forward's is known once backward has run: from then on forward keeps it, in one new piece of
memory for each batch. Before, and where nobody asks for gradients, it keeps nothing, and a backward that comes all the
same performs forward again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from kernelproof.kernels.dispatch import is_device_array
from kernelproof.spec.errors import DtypeError
from kernelproof.spec.parameters import Gradients, Parameters

from ..half import half_of, narrowed, widened
from .arrays import SIMULATED, DeviceArray, Place, at, take
from .recorded import MOST_BATCHES, Player, Remembered, are_own, described, given_from, is_ready, memory_of, where
from .replay import Spot
from .tape import Memory, Tape, recorded_on
from .workspace import aligned

Vjp: TypeAlias = tuple[Any, Callable[[Any], Gradients]]
Plain: TypeAlias = Callable[[Mapping[str, Any], Any, bool], Vjp]
"""The chain's own `vjp`, past this module."""


class Result(NamedTuple):
    """What is remembered of an array: not its owner, whose memory would never be given back."""

    memory: Memory
    shape: tuple[int, ...]
    scalar: str


@dataclass(frozen=True)
class _Training:
    """A batch's forward, which keeps what its backward reads, and that."""

    forward: Player
    backward: Player
    dy: Any
    keys: tuple[str, ...]


@dataclass
class _Batch:
    """What is remembered of batches of one kind: forward, and training once backward has run."""

    place: Place
    tape: Tape
    given: list[Memory]
    y: Result
    forward: Player
    training: _Training | None = None

    def learn(self, tape: Tape, dy: DeviceArray, key: Any, gradients: Gradients) -> None:
        """Keep what a backward did, if all of it is on its tape."""
        of_x = [] if gradients.x is None else [gradients.x]
        results = [*gradients.parameters.values(), *of_x]
        if not (tape.is_whole and are_own(tape, results)):
            return
        read = {address.memory for launch in tape.launches for _, address in launch.addresses}
        kept, size = dict[Memory, int](), 0
        for memory in self.tape.taken:
            if memory in read and memory is not self.y.memory:
                kept[memory], size = size, aligned(size + memory.size)
        forward = Player(
            self.tape.launches, _spots([*self.given, self.y.memory], kept),
            [(self.y.shape, self.y.scalar), ((size,), "uint8")], self.place, len(self.given),
        )  # fmt: skip
        given = [*self.given, memory_of(dy), self.y.memory]
        spots = _spots(given, kept) | {memory_of(each): Spot(len(given) + 1 + i, 0) for i, each in enumerate(results)}
        shapes = [(each.shape, each.scalar) for each in results]
        backward = Player(tape.launches, spots, shapes, self.place, len(given) + 1)
        self.training = _Training(forward, backward, key, tuple(gradients.parameters))


def _spots(given: Sequence[Memory], kept: Mapping[Memory, int]) -> dict[Memory, Spot]:
    """Each memory that is given in its own spot, those that are kept together in the one behind."""
    own = {each: Spot(number, 0) for number, each in enumerate(given)}
    return own | {each: Spot(len(given), offset) for each, offset in kept.items()}


class Batches:
    """The batches of one chain; called in place of its `vjp`."""

    def __init__(self) -> None:
        self._batches = Remembered(MOST_BATCHES)

    def __call__(self, plain: Plain, parameters: Mapping[str, Any], x: Any, of_x: bool) -> Vjp:
        if SIMULATED or not is_device_array(x):
            return plain(parameters, x, of_x)
        call = _Call(self._batches, plain, tuple(parameters), [x, *parameters.values()], of_x)
        known = described(call.arrays)
        if known is None or len(known[1]) < len(call.arrays):
            return call.perform(None)
        key = (of_x, call.names, *known[0])
        batch = self._batches.get(key)
        if batch is not None and is_ready(batch.place):
            return call.play(key, batch)
        return call.perform(key if batch is None else None)

    def __reduce__(self) -> tuple[type["Batches"], tuple[()]]:
        return Batches, ()  # What is remembered stays here.


@dataclass(frozen=True)
class _Call:
    """One call of a chain: x first among its arrays, then the parameters by their names."""

    batches: Remembered
    plain: Plain
    names: tuple[str, ...]
    arrays: list[Any]
    of_x: bool

    def perform(self, key: Any) -> Vjp:
        """Through the chain, and remembered by the key if there is one."""
        on_gpu = [each for each in self.arrays if is_device_array(each)]
        with at("SpecChain", on_gpu) as place:
            tape = Tape() if key is not None and len(set(map(where, on_gpu))) == 1 and is_ready(place) else None
            taking = take if tape is None else given_from
            x, *parameters = (taking("SpecChain", each, place) for each in self.arrays)
            half = half_of("SpecChain", (x, *parameters))
            with recorded_on(tape):
                wide = map(widened, parameters)
                y, back = self.plain(dict(zip(self.names, wide, strict=True)), widened(x), self.of_x)
                y = y if half is None else narrowed(y, half)
        batch = None
        if tape is not None and tape.is_whole and are_own(tape, [y]):
            given, result = list(map(memory_of, (x, *parameters))), Result(memory_of(y), y.shape, y.scalar)
            spots = _spots([*given, result.memory], {})
            forward = Player(tape.launches, spots, [(y.shape, y.scalar)], place, len(given))
            batch = _Batch(place, tape, given, result, forward)
            self.batches.keep(key, batch)

        def backward(dy: Any) -> Gradients:
            return _backward(back, dy, batch, half, on_gpu[0])

        return y.owner, backward

    def play(self, key: Any, batch: _Batch) -> Vjp:
        """As the batch was performed before."""
        training = batch.training
        if training is None:
            (y,) = batch.forward([*map(batch.forward.address, self.arrays)])
            return y, lambda dy: self.perform(key)[1](dy)
        y, kept = training.forward([*map(training.forward.address, self.arrays)])

        def backward(dy: Any) -> Gradients:
            known = described([dy])
            if known is None or known[0] != training.dy or not is_ready(batch.place):
                return self.perform(None)[1](dy)
            given = [*map(training.backward.address, (*self.arrays, dy, y, kept))]
            *gradients, dx = training.backward(given) if self.of_x else (*training.backward(given), None)
            return Gradients(Parameters.unchecked(dict(zip(training.keys, gradients, strict=True))), dx)

        return y, backward


def _backward(back: Callable[[Any], Gradients], dy: Any, batch: _Batch | None, half: str | None, x: Any) -> Gradients:
    """The gradients through the chain; what it does is kept for the batch, if that does not know it yet."""
    known = described([dy]) if batch is not None and batch.training is None else None
    with at("SpecChain", [dy if is_device_array(dy) else x]) as place:
        tape = None
        if batch is not None and known is not None and place == batch.place and is_ready(place):
            tape = Tape(batch.tape.taken)
        taken = take("SpecChain", dy, place) if tape is None else given_from("SpecChain", dy, place)
        if half != half_of("SpecChain", [taken]):
            raise DtypeError(
                "SpecChain", f"dy is {getattr(dy, 'dtype', dy)}", f"{half or x.dtype}, as x", "Convert it first."
            )
        with recorded_on(tape):
            came = back(widened(taken))
            if half is not None:
                rounded = {key: narrowed(each, half) for key, each in came.parameters.items()}
                came = Gradients(Parameters.unchecked(rounded), narrowed(came.x, half))
    if batch is not None and known is not None and tape is not None:
        batch.learn(tape, taken, known[0], came)
    gradients = {key: each.owner for key, each in came.parameters.items()}
    return Gradients(Parameters.unchecked(gradients), None if came.x is None else came.x.owner)

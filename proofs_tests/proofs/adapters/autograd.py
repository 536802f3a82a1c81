"""What adapters of differentiating frameworks share: their forwards, and the gradients that they derive themselves."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kernelproof.proofs.forms import forward_arguments, named_arguments
from kernelproof.proofs.laws import Kernel
from kernelproof.spec import OPERATORS


def differentiated(
    forwards: Mapping[str, Callable[..., Any]],
    array: Callable[[np.ndarray], Any],
    pull_back: Callable[[Callable[..., Any], Mapping[str, Any], str, Any], Any],
    on_host: Callable[[Any], np.ndarray],
) -> dict[str, Kernel]:
    """The forwards and all their gradients as functions of numpy arrays with the operators' own arguments.

    `array` makes the framework's array of numpy's, `on_host` the way back. `pull_back(forward, given, argument, dy)` is
    the framework's own gradient of `<dy, forward(**given)>` in that argument.
    """

    def function(operator: str) -> Kernel:
        op, _, argument = operator.partition(".d")

        def run(*args: Any, **kwargs: Any) -> Any:
            named = named_arguments(operator, args, kwargs)
            given = forward_arguments(op, named) if argument else named
            given = {name: array(each) if isinstance(each, np.ndarray) else each for name, each in given.items()}
            if argument:
                # A loss is a scalar: its dy is one.
                dy = named["dy"] if "dy" in named else np.ones((), named[argument].dtype)
                return on_host(pull_back(forwards[op], given, argument, array(dy)))
            came = forwards[op](**given)
            return tuple(map(on_host, came)) if isinstance(came, tuple) else on_host(came)

        return run

    return {operator: function(operator) for operator in OPERATORS if operator.partition(".")[0] in forwards}

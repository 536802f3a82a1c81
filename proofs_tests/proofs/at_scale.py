"""Problems too large for the specification: the whole kernel runs, its first and its last image are judged.

Where images are independent, theirs are cut from the result. Where the result is a sum over images, the others' dy is
zero: the kernel still visits all of them, and every one of their products is exactly zero.
"""

from dataclasses import replace

import numpy as np

from .bounds import rounding_bound
from .judging import AXES, Kernel, compare, evaluate, specified
from .problems import Problem

OF_IMAGES, BY_IMAGE = ("conv2d", "max_pool2d", "linear"), ("x", "dy")


def worst_error(kernel: Kernel, problem: Problem) -> float:
    """The worst error of the first and last image over what rounding allows; raises LawBroken beyond it.

    Of convolution, pooling, the linear layer and their gradients; other operators are judged whole.
    """
    arrays = problem.arrays()
    if problem.op.name not in OF_IMAGES:
        allowed = rounding_bound(problem, arrays, problem.dtype)
        return compare(problem, evaluate(kernel, problem, arrays), specified(problem, arrays, np.float64), allowed)
    images = range(problem.shapes["x"][0])
    ends = sorted({*images[:1], *images[-1:]})
    is_a_sum = AXES[problem.operator][0] != "n"
    if is_a_sum:
        arrays["dy"][1:-1] = 0
    (came,) = evaluate(kernel, problem, arrays)
    few = {name: each[ends] if name in BY_IMAGE else each for name, each in arrays.items()}
    shapes = {**problem.shapes, "x": (len(ends), *problem.shapes["x"][1:])}
    # Still called by the whole problem's precision and family: only the batch is smaller.
    ends_alone = replace(problem, shapes=shapes, output=(len(ends), *problem.output[1:]))
    right, allowed = specified(ends_alone, few, np.float64), rounding_bound(ends_alone, few, problem.dtype)
    return compare(ends_alone, (came if is_a_sum else came[ends],), right, allowed)

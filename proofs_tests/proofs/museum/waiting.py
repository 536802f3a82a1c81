"""Faults from public reports whose operator is not here yet."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Waiting:
    """A report, what it waits for, and how it will be planted."""

    source: str
    needs: str
    fault: str


WAITING: tuple[Waiting, ...] = (
    Waiting("netcl 0.4.4", "conv2d fused with relu", "the fused relu is dropped on one backend"),
    Waiting("onnxruntime#16203, pytorch#183528", "avg_pool2d", "ceil_mode with count_include_pad divides by kh*kw"),
    Waiting("executorch#18616", "avg_pool2d", "divisor_override is ignored when padding is excluded"),
    Waiting("FlagGems#4915", "adaptive_max_pool2d", "the end of a bin is rounded down"),
    Waiting("FlagGems#4924", "adaptive_max_pool2d", "the loop over a bin is capped at 64"),
    Waiting("tensorflow#118701, flax#1491, tt-metal#45968", "batch_norm", "one-pass variance E[x^2] - E[x]^2"),
    Waiting("mlx#3817", "batch_norm", "the running variance is biased"),
    Waiting("onnxscript#1289", "batch_norm", "the momentum's convention is turned round; eps outside the root"),
    Waiting("pytorch#73205, tinygrad#3570", "cross_entropy with label_smoothing", "smoothing counts ignored rows"),
    Waiting("pytorch#69339", "cross_entropy with weight and ignore_index", "weight[-100] is read out of bounds"),
    Waiting("pytorch#75181", "cross_entropy with ignore_index", "all rows ignored gives 0/0"),
    Waiting("pytorch#11551", "cross_entropy with ignore_index", "an ignored row with -inf gives NaN gradients"),
    Waiting("simplegrad", "cross_entropy with class probabilities", "softmax - target, though targets do not sum to 1"),
)
"""Reports that no operator here can answer for."""

"""Inputs of a layer rounded to 8 bits: each token (or piece of one) by a scale of its own, or all by one."""

from headrace.kernels.rounding import cast as cast
from headrace.kernels.rounding import rounded as rounded
from headrace.kernels.rounding import static as static

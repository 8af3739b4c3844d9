"""Means, shares and quantiles over tokens with standard errors that know that neighbouring tokens hang together.

Values come as texts, each a list of blocks (numpy arrays of one value per token). Blocks are taken as independent,
tokens within one are not. Texts are fixed: several together are strata of one sample, not a sample of texts.
"""

from collections.abc import Sequence
from math import exp, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Text = Sequence[Values]

FEWEST = 8
"""Windows of a text from which on they are its blocks; fewer are cut into so many stretches or more."""
STRETCH = 64
"""Most tokens of a stretch."""
DRAWS = 400
"""Bootstrap samples for the error of a quantile; always the same ones."""


class Estimate(NamedTuple):
    """A number and its standard error, which is nan where one block is all there is."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.error:.2g}"


def blocks(windows: Text) -> list[Values]:
    """A text's windows, or stretches of them where they are too few to say how much they differ."""
    if len(windows) >= FEWEST:
        return list(windows)
    stretch = max(1, min(STRETCH, sum(map(len, windows)) // FEWEST))
    return [window[at : at + stretch] for window in windows for at in range(0, len(window), stretch)]


def mean(texts: Sequence[Text]) -> Estimate:
    """Mean per token. Its error is that of a ratio estimator over blocks, text by text (Cochran 1977, section 6.8).

    With s_b the sum and n_b the tokens of block b, B blocks, N tokens of a text and m their mean:
    error^2 = B / (B - 1) * sum of (s_b - m n_b)^2 / N^2; texts together by their shares of all tokens.
    """
    total = sum(len(block) for text in texts for block in text)
    value, variance = 0.0, 0.0
    for text in texts:
        sums = np.array([block.sum() for block in text])
        counts = np.array([len(block) for block in text])
        each = sums.sum() / counts.sum()
        value += sums.sum() / total
        square = float(((sums - each * counts) ** 2).sum())
        variance += square * len(text) / (len(text) - 1) / total**2 if len(text) > 1 else np.nan
    return Estimate(float(value), sqrt(variance))


def exponential(texts: Sequence[Text]) -> Estimate:
    """exp of the mean, its error carried through the exponential (delta method)."""
    inner = mean(texts)
    return Estimate(exp(inner.value), exp(inner.value) * inner.error)


def quantile(texts: Sequence[Text], share: float) -> Estimate:
    """The least value that `share` of all tokens do not exceed. Its error: bootstrap over blocks, text by text."""
    values = np.concatenate([block for text in texts for block in text])
    order = np.argsort(values, kind="stable")
    lengths = [len(block) for text in texts for block in text]
    ids = np.repeat(np.arange(len(lengths)), lengths)[order]
    values = values[order]

    def at(weights: NDArray[np.int64]) -> float:
        reached = np.cumsum(weights[ids])
        return float(values[np.searchsorted(reached, share * reached[-1])])

    sizes = [len(text) for text in texts]
    value = at(np.ones(sum(sizes), dtype=np.int64))
    if min(sizes) < 2:
        return Estimate(value, float("nan"))
    random = np.random.default_rng(0)
    drawn = [
        at(np.concatenate([random.multinomial(size, np.full(size, 1 / size)) for size in sizes]))
        for _ in range(DRAWS)
    ]
    return Estimate(value, float(np.std(drawn, ddof=1)))

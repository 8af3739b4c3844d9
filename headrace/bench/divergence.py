"""How far a model's predictions are from another's: KL divergence, top-1 agreement, and both perplexities.

Texts are cut into windows that are read alone, each by both models in turn; logits of a few positions are held at a
time, so that memory hardly grows with windows or vocabulary. All is paired: both models predict the same tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from headrace.base.errors import Refused
from headrace.bench.estimate import Estimate, Values, blocks, exponential, mean, quantile
from headrace.bench.plain import Plain
from headrace.bench.texts import cut

ALL = "all"
"""Name of the row of several texts together."""
LOGITS = 1 << 23
"""Logits of each model held at once, in float64: 64 MB."""

Progress = Callable[[int, int], None]  # tokens read so far, tokens in all


class Divergence(NamedTuple):
    """Of `tokens` predicted tokens of a text, in nats. p is the base's distribution over the vocabulary, q the other's.

    kl     mean over tokens of KL(p || q) = sum of p log(p / q) (Kullback and Leibler 1951)
    p99    its 99th percentile: what happens to the worst one in a hundred tokens
    top1   share of tokens for which both find the same one likeliest
    base, other    perplexities
    ratio  other / base; its error knows that both read the same tokens, and is far smaller than those of the two
    """

    text: str
    windows: int
    tokens: int
    kl: Estimate
    p99: Estimate
    top1: Estimate
    base: Estimate
    other: Estimate
    ratio: Estimate


class Read(NamedTuple):
    """Per predicted token of one window: KL in nats, 1 where the likeliest token is the same, losses of both."""

    kl: Values
    same: Values
    base: Values
    other: Values


def compare(
    base: Plain,
    others: Sequence[Plain],
    texts: Mapping[str, Sequence[list[int]]],
    progress: Progress | None = None,
) -> list[list[Divergence]]:
    """For each of `others` a row for each text, given as windows of token ids, and one for all if there are several.

    Raises Refused where a model cannot be compared with the base, having another vocabulary.
    """
    for other in others:
        sizes = [model.decoder.shape.vocab for model in (base, other)]
        if sizes[0] != sizes[1]:
            raise _strangers(base, other, f"have vocabularies of {sizes[0]:,} and {sizes[1]:,} tokens")
    done, total = 0, sum(len(ids) - 1 for windows in texts.values() for ids in windows)
    found: dict[str, list[list[Read]]] = {}
    for name, windows in texts.items():
        found[name] = []
        for ids in windows:
            found[name].append(read(base, others, ids))
            done += len(ids) - 1
            if progress is not None:
                progress(done, total)
    return [_rows(found, n) for n in range(len(others))]


def _rows(found: Mapping[str, Sequence[Sequence[Read]]], other: int) -> list[Divergence]:
    texts = {name: [window[other] for window in windows] for name, windows in found.items()}
    rows = [summary(name, [reads]) for name, reads in texts.items()]
    return rows if len(rows) < 2 else [*rows, summary(ALL, list(texts.values()))]


def windows(
    base: Plain, others: Sequence[Plain], texts: Mapping[str, str], tokens: int, count: int | None
) -> dict[str, list[list[int]]]:
    """Texts as windows of token ids; see `texts.cut`. Raises Refused where a model reads them differently."""
    longest = min(model.longest for model in (base, *others)) - 1
    found = {name: cut(base.tokenizer, text, name, tokens, count, longest) for name, text in texts.items()}
    for other in others:
        if base.tokenizer.fingerprint == other.tokenizer.fingerprint:
            continue
        for name, text in texts.items():
            if found[name] != cut(other.tokenizer, text, name, tokens, count, longest):
                raise _strangers(base, other, f"cut {name} into different tokens")
    return found


def _strangers(base: Plain, other: Plain, how: str) -> Refused:
    return Refused(
        f"{base.name} and {other.name} {how}",
        param="other",
        hint="KL is between predictions of the same tokens: give a model and what was made of it",
    )


@torch.inference_mode()
def read(base: Plain, others: Sequence[Plain], ids: list[int]) -> list[Read]:
    """What the base and each of the others say of every token of a window but the first."""
    targets_T = torch.tensor(ids[1:], device=base.device)
    rows = max(1, LOGITS // base.decoder.shape.vocab)
    hiddens = [model.hidden(ids)[:-1].split(rows) for model in (base, *others)]
    parts: list[list[Read]] = [[] for _ in others]
    for targets_S, p_SE, *rest in zip(targets_T.split(rows), *hiddens, strict=True):
        p_SV = torch.log_softmax(base.decoder.logits(p_SE), 1, dtype=torch.float64)
        for other, q_SE, part in zip(others, rest, parts, strict=True):
            q_SV = other.decoder.logits(q_SE).to(base.device)
            part.append(_compared(p_SV, torch.log_softmax(q_SV, 1, dtype=torch.float64), targets_S))
    return [Read(*map(np.concatenate, zip(*part, strict=True))) for part in parts]


def _compared(p_SV: Tensor, q_SV: Tensor, targets_S: Tensor) -> Read:
    """From log-probabilities; in float64, because in float32 they are off by more than good schemes lose."""
    base_S, other_S = (-side.gather(1, targets_S[:, None])[:, 0] for side in (p_SV, q_SV))
    same_S = p_SV.argmax(1) == q_SV.argmax(1)
    gap_SV = p_SV.sub(q_SV).nan_to_num_(0.0)  # what neither holds possible adds nothing
    kl_S = gap_SV.mul_(p_SV.exp()).sum(1)
    return Read(*(column.double().cpu().numpy() for column in (kl_S, same_S, base_S, other_S)))


def summary(text: str, texts: Sequence[Sequence[Read]]) -> Divergence:
    """One row over texts, each a list of what was read of its windows."""

    def column(of: Callable[[Read], Values]) -> list[list[Values]]:
        return [blocks([of(window) for window in windows]) for windows in texts]

    kl = column(lambda one: one.kl)
    return Divergence(
        text,
        sum(map(len, texts)),
        sum(len(window.kl) for windows in texts for window in windows),
        mean(kl),
        quantile(kl, 0.99),
        mean(column(lambda one: one.same)),
        exponential(column(lambda one: one.base)),
        exponential(column(lambda one: one.other)),
        exponential(column(lambda one: one.other - one.base)),
    )

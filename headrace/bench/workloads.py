"""Named pieces of work: token ids in, lengths out, always the same ones for a name and a vocabulary."""

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from headrace.base.errors import TooLong, UnknownName
from headrace.bench.result import Measure


class Workload(NamedTuple):
    """Prompts as token ids, and how many tokens each of them gets."""

    name: str
    prompts: list[list[int]]
    outputs: list[int]

    @property
    def tokens_in(self) -> int:
        return sum(map(len, self.prompts))

    @property
    def tokens_out(self) -> int:
        return sum(self.outputs)

    def check(self, longest: int) -> None:
        """Raises TooLong for a request that a model of so many tokens cannot answer in full."""
        lengths = zip(self.prompts, self.outputs, strict=True)
        _check(self.name, max(len(prompt) + out for prompt, out in lengths), longest)

    def again(self, repeat: int, vocab: int) -> "Workload":
        """The same lengths with other tokens, so that nothing of an earlier repeat is found in the prefix cache."""
        shifted = [
            [(token + 977 * repeat) % (vocab - 40) + 20 for token in prompt] for prompt in self.prompts
        ]
        return self._replace(prompts=shifted)

    def measures(self, name: str, seconds: float, spread: float) -> list[Measure]:
        """The time it took, and the tokens per second that this is."""
        tokens = self.tokens_out, self.tokens_in + self.tokens_out
        return [
            Measure(f"{name}: time", seconds, "s", "lower", spread),
            Measure(f"{name}: output", tokens[0] / seconds, "tok/s", "higher", spread),
            Measure(f"{name}: total", tokens[1] / seconds, "tok/s", "higher", spread),
        ]

    def warm_up(self, vocab: int) -> "Workload":
        """The front of it with short answers and other tokens: what is done once is done before it is timed."""
        made = self.again(1000, vocab)
        return made._replace(prompts=made.prompts[:64], outputs=[min(8, n) for n in made.outputs[:64]])


Make = Callable[[Random, int], tuple[list[list[int]], list[int]]]


def _ids(random: Random, vocab: int, count: int) -> list[int]:
    return [random.randrange(10, vocab - 10) for _ in range(count)]


def _same(count: int, tokens_in: int, tokens_out: int) -> Make:
    """`count` requests of equal lengths."""

    def make(random: Random, vocab: int) -> tuple[list[list[int]], list[int]]:
        return [_ids(random, vocab, tokens_in) for _ in range(count)], [tokens_out] * count

    return make


def _mixed(count: int, low_in: int, high_in: int, low_out: int, high_out: int) -> Make:
    """Lengths drawn evenly from two ranges."""

    def make(random: Random, vocab: int) -> tuple[list[list[int]], list[int]]:
        ins = [random.randint(low_in, high_in) for _ in range(count)]
        outs = [random.randint(low_out, high_out) for _ in range(count)]
        return [_ids(random, vocab, n) for n in ins], outs

    return make


def _shared(count: int, prefix: int, own: int, tokens_out: int) -> Make:
    """Prompts that begin alike."""

    def make(random: Random, vocab: int) -> tuple[list[list[int]], list[int]]:
        head = _ids(random, vocab, prefix)
        return [head + _ids(random, vocab, own) for _ in range(count)], [tokens_out] * count

    return make


GPU: dict[str, Make] = {
    "single": _same(1, 128, 256),
    "batch32": _same(32, 512, 256),
    "batch256": _same(256, 128, 256),
    "mixed": _mixed(1024, 100, 1024, 100, 1024),
    "prefill": _same(256, 2048, 1),
    "long": _same(8, 16384, 128),
    "prefix": _shared(256, 2048, 64, 64),
}
CPU: dict[str, Make] = {
    "single": _same(1, 128, 128),
    "prefill": _same(1, 1024, 1),
    "batch16": _same(16, 64, 64),
    "mixed64": _mixed(64, 32, 256, 32, 128),
    "prefix32": _shared(32, 768, 16, 16),
}


def check(names: Sequence[str]) -> None:
    """Raises UnknownName for a workload that no kind of device has."""
    for name in names:
        if name not in GPU | CPU:
            raise UnknownName.among("workload", name, list(GPU | CPU), param="workload")


def workload(name: str, vocab: int, gpu: bool) -> Workload:
    """The workload of that name for a kind of device. Raises UnknownName listing the known ones."""
    known = GPU if gpu else CPU
    if name not in known:
        raise UnknownName.among("workload", name, list(known), param="workload")
    return Workload(name, *known[name](Random(0), vocab))


def custom(count: int, tokens_in: int, tokens_out: int, vocab: int, longest: int) -> Workload:
    """Requests of given lengths. Raises TooLong, before ids are drawn, as `Workload.check` does."""
    name = f"{count}x{tokens_in}+{tokens_out}"
    _check(name, tokens_in + tokens_out, longest)
    return Workload(name, *_same(count, tokens_in, tokens_out)(Random(0), vocab))


def _check(name: str, most: int, longest: int) -> None:
    if most > longest:
        raise TooLong(
            f"{name} has a request of {most} tokens, prompt and answer; this model takes {longest}",
            param="workload",
            hint="ask for fewer tokens, or raise model.max_len",
        )

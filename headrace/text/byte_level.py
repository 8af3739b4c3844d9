"""Byte-level BPE vocabularies: the alphabet that spells bytes, and how each family splits text into words.

Byte-level BPE: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from headrace.base.errors import BadCheckpoint, UnknownName


def _alphabet() -> dict[str, int]:
    """The character that stands for each byte: itself if it can be seen, else the next one from U+0100 on."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spelled = {chr(byte): byte for byte in seen}
    hidden = [byte for byte in range(256) if byte not in set(seen)]
    return spelled | {chr(256 + n): byte for n, byte in enumerate(hidden)}


BYTE_OF = _alphabet()


def spelled_bytes(token: str) -> bytes:
    """The bytes of a token; one with a character outside the alphabet stands for itself in UTF-8."""
    try:
        return bytes([BYTE_OF[c] for c in token])
    except KeyError:
        return token.encode()


@dataclass(frozen=True)
class Family:
    """How a family of models cuts text into words before merging."""

    splits: tuple[str, ...] = ()  # regular expressions, applied one inside the other; none: GPT-2's own
    digits: bool = False  # each digit is a word, then GPT-2's own
    nfc: bool = False  # Unicode NFC first
    whole_words: bool = False  # a word that is a token is taken whole, whatever the merges say
    add_bos: bool = False  # where the file does not say


_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_SLASH_REST = _REST.replace(r"[\r\n]*", r"[\r\n/]*", 1)


def _cased(ending: str, digits: str) -> str:
    """Words that also split where lower case turns to upper."""
    return f"{_LEAD}{_UPPER}*{_LOWER}+{ending}|{_LEAD}{_UPPER}+{_LOWER}*{ending}|{digits}|{_SLASH_REST}"


_LLAMA3 = rf"{_CONTRACTION}|{_LEAD}\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTION}|{_LEAD}\p{{L}}+|\p{{N}}|{_REST}"
_QWEN35 = _QWEN2.replace(r"]?\p{L}+", r"]?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)

_GPT2 = Family()
_DIGITS = Family(digits=True)
_LLAMA3_FAMILY = Family((_LLAMA3,), whole_words=True, add_bos=True)
_GPT4O_FAMILY = Family((_cased(_CONTRACTION + "?", r"\p{N}{1,3}"),))

# Names as they stand in `tokenizer.ggml.pre`.
FAMILIES = {
    **dict.fromkeys(("default", "gpt-2", "gpt2", "olmo", "mpt", "phi-2", "jais", "trillion"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), _DIGITS),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2", "midm-2.0"), _LLAMA3_FAMILY
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), Family((_LLAMA3,))),
    "qwen2": Family((_QWEN2,), nfc=True),
    "deepseek-r1-qwen": Family((_QWEN2,), add_bos=True),
    "qwen35": Family((_QWEN35,), nfc=True),
    "tekken": Family((_cased("", r"\p{N}"),), whole_words=True, add_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O_FAMILY),
    "deepseek-v3": Family(_DEEPSEEK3, add_bos=True),
}


def family(name: str) -> Family:
    """Raises UnknownName, listing the known ones."""
    if name not in FAMILIES:
        raise UnknownName.among("pre-tokenizer (tokenizer.ggml.pre)", name, list(FAMILIES))
    return FAMILIES[name]


def build(tokens: Sequence[str], merges: Sequence[str], kind: Family) -> Tokenizer:
    """A byte-level BPE tokenizer without special tokens. Raises BadCheckpoint when merges do not fit."""
    vocab = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(_bpe(vocab, merges, kind.whole_words))
    if kind.nfc:
        backend.normalizer = normalizers.NFC()
    words: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Split(Regex(split), "isolated") for split in kind.splits
    ]
    if kind.digits:
        words.append(pre_tokenizers.Digits(individual_digits=True))
    words.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not kind.splits))
    backend.pre_tokenizer = pre_tokenizers.Sequence(words) if len(words) > 1 else words[0]
    backend.decoder = decoders.ByteLevel()
    return backend


def _bpe(vocab: dict[str, int], merges: Sequence[str], whole_words: bool) -> models.BPE:
    cuts = [merge.find(" ", 1) for merge in merges]
    pairs = [(merge[:cut], merge[cut + 1 :]) for merge, cut in zip(merges, cuts, strict=True)]
    try:  # the library looks whether both and what they make are tokens, far faster than a loop here
        model = models.BPE(vocab=vocab, merges=pairs, ignore_merges=whole_words)
    except Exception as error:  # it raises bare Exception
        raise _misfit(merges, cuts, vocab) from error
    if -1 in cuts:
        raise _misfit(merges, cuts, vocab)
    return model


def _misfit(merges: Sequence[str], cuts: Sequence[int], vocab: dict[str, int]) -> BadCheckpoint:
    def fits(merge: str, cut: int) -> bool:
        left, right = merge[:cut], merge[cut + 1 :]
        return cut > 0 and left in vocab and right in vocab and left + right in vocab

    wrong = [merge for merge, cut in zip(merges, cuts, strict=True) if not fits(merge, cut)]
    return BadCheckpoint(
        f"merge {wrong[0]!r} in tokenizer.ggml.merges does not join two tokens into a third"
        if wrong
        else "the tokens and merges of tokenizer.ggml are no vocabulary"
    )

"""All knobs: one frozen tree, from which the command line, the checks and docs/knobs.md are made."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
from functools import cache
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from headrace.base.errors import Refused, UnknownName
from headrace.base.words import dtype_name

C = TypeVar("C")


def knob(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    check: Callable[[Any], str | None] | None = None,
) -> Any:
    """A field with its help text (shown by --help and in the docs) and its bounds, both inclusive.

    Choices are said by the field's type, `Literal[...]`; `None` stands for "decided by the plan".
    `check` answers what is wrong with a value, or None.
    """
    return field(default=default, metadata={"help": help, "low": low, "high": high, "check": check})


def _device(value: str) -> str | None:
    kind, colon, index = value.partition(":")
    known = value in ("auto", "cpu", "cuda") or (kind == "cuda" and colon and index.isdecimal())
    return None if known else "expected auto, cpu, cuda or cuda:N"


def _named(value: str) -> str | None:
    return None if value.strip() else "expected a name"


class Knobs:
    """A branch of the tree: its values are checked when it is made. Raises Refused naming the knob."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for name, spec in flat(type(self)).items():
            _check(f"{type(self).__name__.lower()}.{name}", getattr(self, name), spec)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model(Knobs):
    """What is run, and on what."""

    path: str = knob(
        "smollm2-135m",
        "the model: a known name, a folder, a .gguf file, or a repo id on the Hugging Face hub",
        check=_named,
    )
    tokenizer: str | None = knob(
        None, "folder or .gguf file to take the tokenizer from; default: the model's own"
    )
    chat_template: str | None = knob(
        None, "chat template in Jinja, or the path of a file with one; default: the model's own"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = knob(
        "auto",
        "what weights and activations are computed in; auto: float32 on a CPU, on a GPU float16 where the checkpoint"
        " says so, else bfloat16",
    )
    quantization: str = knob(
        "auto",
        "how weights are kept: none (in dtype), checkpoint (as quantized there), int8 (8-bit products, on a CPU) or"
        " another scheme (fp8, w8a8, w4a16, q4_0, ...) to round them to while loading; auto: int8 on a CPU for what"
        " is quantized already, unless a dtype is asked for, checkpoint on a GPU that has kernels for it, else none",
        check=_named,
    )
    max_len: int | None = knob(
        None,
        "most tokens of one request, prompt and answer together; default: what the model was made for",
        low=1,
    )
    device: str = knob("auto", "auto, cpu, cuda or cuda:N; auto takes a GPU if there is one", check=_device)
    attention: str = knob(
        "auto", "attention back end by name; auto takes the fastest that fits", check=_named
    )
    threads: int | None = knob(
        None, "threads used for tensors on a CPU; default: the cores we may use", low=1
    )
    dummy_weights: bool = knob(
        False, "random weights instead of the checkpoint's; only a config.json is needed"
    )
    seed: int = knob(0, "seed of dummy weights and of requests that bring none", low=0, high=2**63 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory(Knobs):
    """How memory is spent."""

    share: float | None = knob(
        None,
        "part of memory we may use, weights included; default: 0.92 of a GPU, half of what a CPU has free",
        low=0.01,
        high=1,
    )
    block: int = knob(16, "tokens per KV block", low=1, high=1024)
    kv_blocks: int | None = knob(
        None, "number of KV blocks; default: as many as memory.share leaves room for", low=1
    )
    kv_dtype: Literal["auto", "fp8"] = knob(
        "auto",
        "type of cached keys and values; auto: that of the activations; fp8 (e4m3) halves what they take",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule(Knobs):
    """Who runs when."""

    tokens: int | None = knob(
        None,
        "most prompt tokens computed in one step, beside rows that decode; default: chosen for the device",
        low=1,
    )
    rows: int | None = knob(None, "most requests in one step; default: chosen for the device", low=1)
    policy: Literal["arrival", "priority"] = knob("arrival", "order in which waiting requests are admitted")
    prefix_cache: bool = knob(True, "keep the KV blocks of finished requests for those that begin alike")
    overlap: Literal["auto", "on", "off"] = knob(
        "auto", "plan the next step while one runs; auto: on a GPU, where it gains something"
    )
    speculate: int | None = knob(
        None,
        "most tokens of an answer that are guessed from its own text and checked in one step; 0: none; default: 8 on a"
        " CPU, where a step of a few tokens takes little longer than one of one, else 0",
        low=0,
        high=64,
    )
    graphs: bool = knob(True, "record steps as CUDA graphs; off shows errors where they arise")
    deterministic: bool | None = knob(
        None,
        "a request's logits are the same bits whatever shares its steps, however its prompt is cut or cached; slower;"
        " default: true for `headrace serve` with 8 bits on a CPU, where it costs little, so that requests go on with"
        " the same text when the engine died; else false",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Every knob of the engine. `engine.resolve` turns it into a plan in which nothing is left open."""

    model: Model = field(default_factory=Model)
    memory: Memory = field(default_factory=Memory)
    schedule: Schedule = field(default_factory=Schedule)


@dataclass(frozen=True, slots=True)
class Knob:
    """One knob as the tree declares it: its type, default, help and bounds."""

    type: Any
    default: Any
    help: str
    low: float | None
    high: float | None
    check: Callable[[Any], str | None] | None

    @property
    def choices(self) -> tuple[str, ...]:
        """The values a `Literal` allows; empty where any value of the type will do."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()


@cache
def flat(config_class: type[Any]) -> Mapping[str, Knob]:
    """Dotted name -> knob, for the whole tree below `config_class`, in order of declaration."""
    return MappingProxyType(dict(_walk(config_class, "")))


def values(config: Any) -> dict[str, Any]:
    """Dotted name -> value, for a tree of knobs."""
    found: dict[str, Any] = {}
    for name in flat(cast(Any, type(config))):
        value = config
        for part in name.split("."):
            value = getattr(value, part)
        found[name] = value
    return found


def replace_dotted(config: C, changes: Mapping[str, Any]) -> C:
    """A copy with `{"memory.share": 0.5}` applied. Raises UnknownName, with the nearest name, or Refused."""
    known = flat(type(config))
    branches: dict[str, dict[str, Any]] = {}
    leaves: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in known:
            raise UnknownName.among("knob", name, list(known), param=name)
        branch, dot, rest = name.partition(".")
        if dot:
            branches.setdefault(branch, {})[rest] = value
        else:
            leaves[name] = value
    for branch, rest in branches.items():
        leaves[branch] = replace_dotted(getattr(config, branch), rest)
    return replace(cast(Any, config), **leaves)


def _walk(config_class: type[Any], prefix: str) -> Iterator[tuple[str, Knob]]:
    hints = get_type_hints(config_class)
    for f in fields(config_class):
        if is_dataclass(hints[f.name]):
            yield from _walk(hints[f.name], f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", _declared(f, hints[f.name])


def _declared(f: Field[Any], hint: Any) -> Knob:
    return Knob(type=hint, default=f.default, **f.metadata)


def _check(name: str, value: Any, spec: Knob) -> None:
    if not _is_a(value, spec.type):
        raise Refused(f"{name} is {value!r}; expected {describe(spec)}", param=name)
    if value is None:
        return
    if spec.check and (wrong := spec.check(value)):
        raise Refused(f"{name} is {value!r}; {wrong}", param=name)
    if (spec.low is not None and value < spec.low) or (spec.high is not None and value > spec.high):
        raise Refused(f"{name} is {value!r}; expected {describe(spec)}", param=name)


def _is_a(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if isinstance(hint, UnionType):
        return any(_is_a(value, member) for member in get_args(hint))
    if hint is float:  # nan and infinity are never meant
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))  # True is no number


def describe(spec: Knob) -> str:
    """What a knob accepts, for people: its choices, or its type and bounds."""
    if spec.choices:
        return " or ".join(spec.choices)
    members = get_args(spec.type) or (spec.type,)
    kind = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    said = next(kind[member] for member in members if member is not NoneType)
    if spec.low is not None and spec.high is not None:
        return f"{said} from {spec.low} to {spec.high}"
    return f"{said} of at least {spec.low}" if spec.low is not None else said


# vLLM's names for our knobs, so that a script changes its import line and nothing else.
_VLLM = {
    "model": "model.path",
    "tokenizer": "model.tokenizer",
    "chat_template": "model.chat_template",
    "dtype": "model.dtype",
    "quantization": "model.quantization",
    "max_model_len": "model.max_len",
    "device": "model.device",
    "attention_backend": "model.attention",
    "load_format": "model.dummy_weights",
    "seed": "model.seed",
    "gpu_memory_utilization": "memory.share",
    "block_size": "memory.block",
    "num_gpu_blocks_override": "memory.kv_blocks",
    "kv_cache_dtype": "memory.kv_dtype",
    "max_num_batched_tokens": "schedule.tokens",
    "max_num_seqs": "schedule.rows",
    "scheduling_policy": "schedule.policy",
    "enable_prefix_caching": "schedule.prefix_cache",
    "async_scheduling": "schedule.overlap",
    "speculative_config": "schedule.speculate",
    "enforce_eager": "schedule.graphs",
    "deterministic": "schedule.deterministic",  # ours; theirs is an environment variable
}


def _read_speculative(given: Any) -> Any:
    """vLLM's mapping, where it means prompt lookup: how many tokens are guessed at once."""
    if not isinstance(given, Mapping):
        return given
    said = cast("Mapping[str, Any]", given)
    method = said.get("method", "ngram" if said.get("model") in (None, "ngram", "[ngram]") else "draft_model")
    if method != "ngram":
        raise Refused(
            f"speculative_config asks for {method!r}; tokens are guessed from a request's own text only",
            param="speculative_config",
            hint='give {"method": "ngram", "num_speculative_tokens": 8}',
        )
    return said.get("num_speculative_tokens")


_DTYPES = {"half": "float16", "float": "float32"}
# What a checkpoint says of itself, and need not be said again.
_RECOGNIZED = frozenset({"awq", "awq_marlin", "gptq", "gptq_marlin", "compressed-tensors", "gguf"})
_READ: dict[str, Callable[[Any], Any]] = {
    "model.path": str,
    "model.tokenizer": str,
    "model.dtype": lambda v: _DTYPES.get(str(v), dtype_name(v)),
    "quantization": lambda v: "auto" if v in _RECOGNIZED else v,
    "model.device": str,
    "model.dummy_weights": lambda v: {"dummy": True, "auto": False, "safetensors": False, "gguf": False}.get(
        v, v
    ),
    "kv_cache_dtype": lambda v: {"fp8_e4m3": "fp8"}.get(v, v),
    "schedule.policy": lambda v: "arrival" if v == "fcfs" else v,
    "enforce_eager": lambda v: not v,
    "speculative_config": _read_speculative,
    "schedule.overlap": lambda v: {True: "on", False: "off"}.get(v, v),
    "schedule.deterministic": lambda v: None if v == "auto" else v,
}
# Accepted with these values only: anything else would ask for what we do not do.
_ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "tensor_parallel_size": ((1,), "this version runs on one device"),
    "pipeline_parallel_size": ((1,), "this version runs on one device"),
    "data_parallel_size": ((1,), "this version runs on one device"),
    "trust_remote_code": ((False,), "no code from a checkpoint is ever run"),
    "cpu_offload_gb": ((0,), "weights stay on the device"),
    "enable_lora": ((False,), "adapters are not supported yet"),
    "enable_chunked_prefill": ((True, None), "long prompts are always computed in pieces"),
    "tokenizer_mode": (("auto", "slow"), "one tokenizer serves all modes"),
    "task": (("auto", "generate"), "this version generates text"),
    "runner": (("auto", "generate"), "this version generates text"),
    "revision": ((None, "main"), "download the revision wanted and give its folder"),
}
# Cannot change an answer: what they tune or silence does not exist here.
_WITHOUT_EFFECT = frozenset(
    {
        "disable_log_stats",
        "skip_tokenizer_init",
        "disable_custom_all_reduce",
        "swap_space",
        "max_seq_len_to_capture",
    }
)


def from_names(**names: Any) -> Config:
    """A Config from vLLM's keyword names or our dotted ones (`**{"memory.share": 0.5}`).

    Raises UnknownName with the nearest known name, and Refused for a value we cannot honour.
    """
    known = [*_VLLM, *_ONLY, *_WITHOUT_EFFECT, *flat(Config)]
    changes: dict[str, Any] = {}
    for name, value in names.items():
        if name in _ONLY:
            allowed, reason = _ONLY[name]
            if value not in allowed:
                raise Refused(
                    f"{name}={value!r} is not supported: {reason}",
                    param=name,
                    hint=f"leave it out, or give {allowed[0]!r}",
                )
        elif name not in _WITHOUT_EFFECT and (name, value) != ("quantization", None):
            dotted = _VLLM.get(name, name)
            if dotted not in flat(Config):
                raise UnknownName.among("option", name, known, param=name)
            read = _READ.get(name, _READ.get(dotted)) if value is not None else None
            changes[dotted] = read(value) if read else value
    return replace_dotted(Config(), changes)

"""The form that an answer must have: what users ask for, checked, and as a grammar in llguidance's language."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, cast

import msgspec

from headrace.base.errors import Refused
from headrace.base.params import Named
from headrace.engine.schemas import MOST_TEXT, Schema, parsed, prepared, read_schema, refused, text_of

Kind = Literal["json", "json_object", "regex", "choice", "grammar", "structural_tag"]
SWITCHES = ("disable_any_whitespace", "disable_additional_properties", "whitespace_pattern")
KINDS: tuple[Kind, ...] = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")

MOST_REGEX = 1 << 14
MOST_CHOICES = 10_000
WHITESPACE = r" |\n(?:  ){0,8}"
"""Between the parts of JSON where nothing else is asked for: a space, or a new line with an indentation. Models that
may write any white space there get lost in it."""
COMPACT = ""
"""No white space at all."""


class Tags(Protocol):
    """A way in which models mark thoughts."""

    opens: str
    closes: str


class Thinking(msgspec.Struct, frozen=True):
    """Tags around thoughts. `begun`: the answer begins inside one; else it may begin with `opens`."""

    opens: str
    closes: str
    begun: bool = False


class Grammar(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer must follow, after thoughts if there may be some. `source` is as llguidance reads it."""

    kind: Kind
    source: str
    thinking: Thinking | None = None


class StructuredOutputsParams(msgspec.Struct, metaclass=Named, frozen=True, kw_only=True, omit_defaults=True):
    """One constraint on an answer. Raises Refused on construction unless exactly one is given.

    json            a JSON schema, as an object or as text      json_object     any JSON object
    regex           a regular expression for the whole answer: Rust's syntax, no look-around, no back-references
    choice          one of these texts                          grammar         a Lark or GBNF grammar
    structural_tag  schemas for what stands between tags, free text elsewhere (vLLM's form with "structures")
    disable_any_whitespace          JSON without white space between its parts
    disable_additional_properties   objects in a schema have the properties it names and no others
    whitespace_pattern              a regular expression for the white space between the parts of JSON
    thinking        how thoughts look that may come first; they are free
    """

    json: str | dict[str, Any] | bool | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | dict[str, Any] | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None
    thinking: "Thinking | None" = None

    def __post_init__(self) -> None:
        given = [kind for kind in KINDS if _is_given(kind, getattr(self, kind))]
        if len(given) != 1:
            what = " and ".join(given) if given else "none"
            raise refused(f"has {what}; expected exactly one of {', '.join(KINDS)}")
        for name in ("json_object", "disable_any_whitespace", "disable_additional_properties"):
            said = getattr(self, name)
            if not isinstance(said, bool) and (name, said) != ("json_object", None):
                raise refused(f"has {name} {said!r:.60}; expected true or false")
        if self.whitespace_pattern is not None:
            text_of(self.whitespace_pattern, "whitespace_pattern", MOST_REGEX)
        if self.whitespace_pattern is not None and self.disable_any_whitespace:
            raise refused("has whitespace_pattern with disable_any_whitespace; expected one of them")

    @property
    def kind(self) -> Kind:
        """Which constraint it is."""
        return next(kind for kind in KINDS if _is_given(kind, getattr(self, kind)))


GuidedDecodingParams = StructuredOutputsParams
"""The name that vLLM had for it before."""


IsSpecial = Callable[[str], bool]


def to_grammar(params: StructuredOutputsParams, is_special: IsSpecial) -> Grammar:
    """The grammar that is asked for. `is_special`: whether a text is a token that no plain text is made of.

    Raises Refused for what is too large or malformed here already; llguidance looks at the rest.
    """
    kind = params.kind
    return Grammar(kind=kind, source=_READ[kind](params, is_special), thinking=params.thinking)


# -- one kind each: (params, is_special) -> llguidance's source


def _json(params: StructuredOutputsParams, _: IsSpecial) -> str:
    return json.dumps({"grammars": [{"json_schema": embedded(params)}]}, ensure_ascii=False)


def _regex(params: StructuredOutputsParams, _: IsSpecial) -> str:
    text = text_of(params.regex, "regex", MOST_REGEX)
    return _lark_source(f"start: /{_slashed(text)}/")


def _choice(params: StructuredOutputsParams, _: IsSpecial) -> str:
    given = cast(object, params.choice)
    if not isinstance(given, Sequence) or isinstance(given, str | bytes) or not given:
        raise refused("has a choice that is no list; expected a list of at least one text")
    if len(given) > MOST_CHOICES:
        raise refused(f"has {len(given)} choices; expected at most {MOST_CHOICES}")
    choices = list(dict.fromkeys(text_of(item, "choice", MOST_TEXT) for item in given))
    if not all(choices) or sum(map(len, choices)) > MOST_TEXT:
        raise refused(f"has choices that are empty or too long; expected {MOST_TEXT} characters in all")
    return _lark_source("start: CHOICE\nCHOICE: " + " | ".join(map(_quoted, choices)))


def _grammar(params: StructuredOutputsParams, _: IsSpecial) -> str:
    text = text_of(params.grammar, "grammar", MOST_TEXT)
    if not text.strip():
        raise refused("has an empty grammar; expected rules, the first of them for `start`")
    return _lark_source(text)


def _structural_tag(params: StructuredOutputsParams, is_special: IsSpecial) -> str:
    """Free text, in which a trigger must be followed by the rest of a tag, what its schema allows, and its end."""
    given = params.structural_tag
    form = parsed(given, "structural_tag") if isinstance(given, str) else given
    if not isinstance(form, dict) or not isinstance(form.get("structures"), list) or "format" in form:
        raise refused(
            'has a structural_tag of an unknown form; expected {"structures": [{"begin", "schema", "end"}, ...],'
            ' "triggers": [...]}'
        )
    triggers = form.get("triggers")
    if not isinstance(triggers, list) or not triggers or not form["structures"]:
        raise refused("has a structural_tag without structures or triggers; expected at least one of each")
    rules: list[str] = []
    for n, structure in enumerate(form["structures"]):
        rules += _tag_rules(f"tag_{n}", structure, triggers, params, is_special)
    names = " | ".join(f"tag_{n}" for n in range(len(form["structures"])))
    return _lark_source("\n".join((f"start: ({names})* rest", "rest: TEXT", r"TEXT: /(.|\n)*/", *rules)))


def _tag_rules(
    name: str,
    structure: object,
    triggers: list[object],
    params: StructuredOutputsParams,
    is_special: IsSpecial,
) -> Iterator[str]:
    entry = cast(Schema, structure) if isinstance(structure, dict) else {}
    begin, end = entry.get("begin"), entry.get("end")
    if not isinstance(begin, str) or not isinstance(end, str):
        raise refused("has a structure without begin and end; expected texts")
    found = [t for t in triggers if isinstance(t, str) and t and begin.startswith(t)]
    if not found:
        raise refused(f"has a structure that begins with {begin!r:.60}; expected one of the triggers there")
    trigger = min(found, key=len)
    schema = json.dumps(
        _with_options(read_schema(entry.get("schema"), "structural_tag"), params), ensure_ascii=False
    )
    if is_special(trigger):
        opening = f"TEXT {trigger}"
    else:
        opening = f"{name}_open"
        yield f"{opening}[lazy]: TEXT {_quoted(trigger)}"
    rest, end = (_quoted(text) if text else "" for text in (begin[len(trigger) :], end))
    yield f"{name}: {opening} {rest} %json {schema} {end}"


_READ: dict[Kind, Callable[[StructuredOutputsParams, IsSpecial], str]] = {
    "json": _json,
    "json_object": _json,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
    "structural_tag": _structural_tag,
}


# -- schemas


def embedded(params: StructuredOutputsParams) -> Schema | None:
    """The schema for JSON that is asked for, as it may stand in a Lark grammar; None for what is no JSON.

    Raises Refused for a schema out of bounds.
    """
    if params.kind not in ("json", "json_object"):
        return None
    given = params.json if params.kind == "json" else {"type": "object"}
    return _with_options(read_schema(given, "json"), params)


def _with_options(schema: Schema, params: StructuredOutputsParams) -> Schema:
    space = params.whitespace_pattern if params.whitespace_pattern is not None else WHITESPACE
    if params.disable_any_whitespace:
        space = COMPACT
    options: Schema = {"whitespace_flexible": False} if space == COMPACT else {"whitespace_pattern": space}
    return {**prepared(schema, params.disable_additional_properties), "x-guidance": options}


# -- texts


def _lark_source(text: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": text}]}, ensure_ascii=False)


def _quoted(text: str) -> str:
    """As a Lark string."""
    return json.dumps(text, ensure_ascii=False)


def _slashed(regex: str) -> str:
    """As it stands between slashes, which a bare slash or line break would end. Digits are those of ASCII."""
    out: list[str] = []
    escaped = False
    for c in regex:
        pair = "\\" + c
        if escaped:
            out.append({"\\d": "[0-9]", "\\D": "[^0-9]", "\\\n": "\\n"}.get(pair, pair))
        elif c != "\\":
            out.append({"\n": "\\n", "/": "\\/"}.get(c, c))
        escaped = c == "\\" and not escaped
    return "".join(out) + ("\\" if escaped else "")


def _is_given(kind: str, value: object) -> bool:
    return value is not None and not (kind == "json_object" and value is False)


def behind_thoughts(
    wanted: StructuredOutputsParams | None, tags: Tags | None, begun: bool
) -> StructuredOutputsParams | None:
    """The same for an answer that may begin with thoughts between `tags`, or, if `begun`, does so."""
    if wanted is None or tags is None:
        return wanted
    return msgspec.structs.replace(wanted, thinking=Thinking(tags.opens, tags.closes, begun))


# -- OpenAI bodies

FIELDS = ("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
          "guided_json_object", "guided_whitespace_pattern")  # fmt: skip
"""Fields of a body that `read` reads; the guided ones are old names."""


def read(body: Mapping[str, Any]) -> tuple[str, StructuredOutputsParams] | None:
    """The one constraint that a body has, and in which field. Raises Refused naming the field."""
    found = dict(_constraints(body))
    if len(found) > 1:
        first, second = list(found)[:2]
        raise Refused(f"{second} is given beside {first}; expected one constraint", param=second)
    return next(iter(found.items()), None)


def _constraints(body: Mapping[str, Any]) -> Iterator[tuple[str, StructuredOutputsParams]]:
    if (form := body.get("response_format")) is not None and (asked := _response_format(form)):
        yield "response_format", constraint("response_format", asked)
    if (form := body.get("structured_outputs")) is not None:
        if not isinstance(form, Mapping):
            raise Refused("structured_outputs is no object; expected one", param="structured_outputs")
        yield "structured_outputs", constraint("structured_outputs", {str(k): v for k, v in form.items()})
    space = body.get("guided_whitespace_pattern")
    guided = [kind for kind in KINDS if _is_given(kind, body.get(f"guided_{kind}"))]
    for kind in guided:
        more = {} if space is None else {"whitespace_pattern": space}
        yield f"guided_{kind}", constraint(f"guided_{kind}", {kind: body[f"guided_{kind}"], **more})


def _response_format(form: object) -> dict[str, Any] | None:
    """What `response_format` asks for, in the names of StructuredOutputsParams; None for plain text."""
    kind = form.get("type") if isinstance(form, Mapping) else None
    entry = cast(Mapping[str, Any], form)
    match kind:
        case "text":
            return None
        case "json_object":  # some servers take a schema here
            return {"json_object": True} if entry.get("schema") is None else {"json": entry["schema"]}
        case "json_schema":
            inner = entry.get("json_schema")
            schema = inner.get("schema") if isinstance(inner, Mapping) else None
            if schema is None:
                raise Refused(
                    "response_format has no json_schema.schema; expected one", param="response_format"
                )
            return {"json": schema}
        case "structural_tag":
            return {"structural_tag": dict(entry)}
        case _:
            shown = repr(kind)[:60]
            raise Refused(
                f"response_format has type {shown}; expected text, json_object, json_schema or structural_tag",
                param="response_format",
            )


def constraint(field: str, names: dict[str, Any]) -> StructuredOutputsParams:
    """From the values of a field of that name, by the names of StructuredOutputsParams. Raises Refused naming it."""
    names = {name: value for name, value in names.items() if value is not None}
    unknown = names.keys() - {*KINDS, *SWITCHES}
    if unknown:
        raise Refused(
            f"{field} has {', '.join(sorted(unknown))[:100]}; expected {', '.join(KINDS)}, or a switch",
            param=field,
        )
    try:
        return StructuredOutputsParams(**names)
    except Refused as fault:
        raise Refused(fault.message.replace("structured_outputs", field, 1), param=field) from fault

"""Compile and run Jinja templates that come from strangers, within bounds of time, size and reach.

Jinja's sandbox keeps a template away from Python's insides. It does not keep one from running or growing for
ever, so every loop and macro body is given a tick that looks at the clock, and whatever can make something large
out of something small (repeating, joining, replacing, padding, nesting) is weighed before it is made.
"""

import functools
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import BuiltinMethodType
from typing import Any, cast

from jinja2 import Template, Undefined, filters, nodes, pass_environment, utils
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from headrace.base.errors import Refused

MAX_SOURCE = 200_000  # characters of template
MAX_TEXT = 1 << 24  # characters of one string or printed value, and of what is rendered
MAX_WORK = 1 << 28  # characters of all strings made during one rendering
MAX_WIDTH = 9_999  # a number that means a width or an indent
MAX_BITS = 4_096  # of an integer

# The filters that chat templates use: those with a result no larger than what they are given, of these the
# ones that walk through it, and those that print it first.
PLAIN = (
    "abs", "attr", "count", "d", "default", "dictsort", "first", "float", "int", "items", "last", "length",
    "reverse", "round",
)  # fmt: skip
WALKING = ("list", "map", "max", "min", "reject", "rejectattr", "select", "selectattr", "sort", "unique")
PRINTING = ("capitalize", "e", "escape", "lower", "safe", "string", "title", "trim", "upper")

_PERCENT_WIDTH = re.compile(r"%(?:\([^)]*\))?[-#0 +]*(?:\*|\d*\.\*|(\d*)(?:\.(\d*))?)")
_BRACE_WIDTH = re.compile(r"\{[^{}]*:[^{}]*?(?:(\{)|(\d+)(?:\.(\d+))?)")


def too_much(what: str) -> Refused:
    """The error for a template that needs more than it may have."""
    return Refused(
        f"the chat template {what}; it was stopped",
        param="chat_template",
        hint="send less, or give another template with --chat-template FILE",
    )


class Budget(threading.local):
    """What the rendering in this thread may still spend. Each method raises Refused when it is not enough."""

    deadline = float("inf")
    seconds = float("inf")
    work = MAX_WORK

    def start(self, seconds: float) -> None:
        """Called once before each rendering."""
        self.deadline, self.work, self.seconds = time.monotonic() + seconds, MAX_WORK, seconds

    def tick(self) -> None:
        """Looks at the clock."""
        if time.monotonic() > self.deadline:
            raise too_much(f"ran for more than {self.seconds:g} seconds")

    def spend(self, size: int) -> None:
        """Before a string of `size` characters is made."""
        self.work -= size
        if size > MAX_TEXT or self.work < 0:
            raise too_much(f"makes more than {MAX_TEXT} characters at once or {MAX_WORK} altogether")
        self.tick()

    def weigh(self, value: object) -> int:
        """How many characters `value` has when printed, roughly, counting what it holds twice as two."""
        if isinstance(value, str):
            return len(value)
        size, steps = 0, 0
        waiting: list[Any] = [value]
        while waiting:
            item: Any = waiting.pop()
            if isinstance(item, str):
                size += len(item)
            elif isinstance(item, Mapping):
                entries = cast(Mapping[Any, Any], item)
                waiting.extend([*entries.keys(), *entries.values()])
            elif isinstance(item, Collection) and not isinstance(item, Undefined):
                waiting.extend(cast(Collection[Any], item))
            size, steps = size + 2, steps + 1
            if size + 8 * len(waiting) > MAX_TEXT:
                raise too_much(f"builds a value of more than {MAX_TEXT} characters")
            if not steps & 4095:
                self.tick()
        return size


class Namespace(utils.Namespace):
    """`namespace()`, which does not print what it holds: that could be itself, or itself twice."""

    def __repr__(self) -> str:
        return "<namespace>"


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja with bounds; `budget.start` before each rendering sets the clock."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", Generation],
            finalize=self.built,
        )
        self.budget = Budget()
        known = cast(dict[str, Callable[..., Any]], filters.FILTERS)
        self.filters: dict[str, Callable[..., Any]] = {
            **{name: known[name] for name in PLAIN},
            **{name: self._walking(known[name]) for name in WALKING},
            **{name: self._printing(known[name]) for name in PRINTING},
            "join": _join,
            "replace": self._replace,
            "indent": self._indent,
            "format": self._format,
            "sum": _sum,
        }
        self.globals: dict[str, Any] = dict(self.globals)
        del self.globals["lipsum"]
        self.globals["namespace"] = Namespace
        self.globals["dict"] = self._dict

    def read(self, source: str) -> nodes.Template:
        """The syntax tree. Raises what Jinja raises, and Refused for a template that is too long."""
        if len(source) > MAX_SOURCE:
            raise too_much(f"has {len(source)} characters, more than {MAX_SOURCE}")
        return self.parse(source)

    def compiled(self, tree: nodes.Template) -> Template:
        """The template of a tree, which is changed on the way."""
        code = self.compile(Watched().visit(tree), filename="chat template")
        return Template.from_code(self, code, self.make_globals(None))

    # -- called by compiled templates -------------------------------------------------------------

    def tick(self) -> None:
        """At the start of every loop and macro body."""
        self.budget.tick()

    def built(self, value: Any) -> Any:
        """On each value that is printed, and each list, tuple and dict that the template writes down."""
        self.budget.weigh(value)
        return value

    def joined(self, *parts: Any) -> str:
        """`a ~ b`."""
        return self.concat([str(self.built(part)) for part in parts])

    def concat(self, parts: Iterable[str]) -> str:  # type: ignore[override]
        """What a macro, a `set` block and the template itself return."""
        kept: list[str] = []
        size = 0
        for part in parts:
            kept.append(part)
            size += len(part)
            if size > MAX_TEXT:
                break
        self.budget.spend(size)
        return "".join(kept)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """+, *, ** and %, when the result cannot be too large."""
        if operator == "%" and isinstance(left, str):
            self._check_format(left, right, _PERCENT_WIDTH)
        elif operator == "+":
            self.budget.spend(self.budget.weigh(left) + self.budget.weigh(right))
        elif operator == "*":
            for one, times in ((left, right), (right, left)):
                if isinstance(times, int) and isinstance(one, str | list | tuple):
                    self.budget.spend(self.budget.weigh(cast(object, one)) * max(times, 0))
            _check_bits(left, right, 1)
        elif operator == "**":
            _check_bits(left, 0, right if isinstance(right, int) else 1)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **more: Any) -> Any:  # noqa: N805
        """Any call; parameters are named so that no keyword argument of the template's can clash."""
        if isinstance(__obj, BuiltinMethodType):
            if isinstance(__obj.__self__, str):
                args = __self._check_method(__obj.__self__, __obj.__name__, args)
            elif isinstance(__obj.__self__, int | float) and args:
                raise too_much(f"calls {__obj.__name__} of a number with arguments")
        return super().call(__context, __obj, *args, **more)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format`, which Jinja replaces by a safe one, when its widths are small."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def checked(*args: Any, **more: Any) -> str:
            self._check_format(value.__self__, [*args, *more.values()], _BRACE_WIDTH)
            return wrapped(*args, **more)

        return checked

    def _dict(self, *args: Any, **more: Any) -> dict[Any, Any]:
        """`dict(...)`: a function, so that the methods of the type are out of reach."""
        return self.built(dict(*args, **more))

    # -- what could grow --------------------------------------------------------------------------

    def _check_method(self, text: str, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if any(isinstance(arg, int) and abs(arg) > MAX_WIDTH for arg in args) or name in (
            "translate",
            "encode",
        ):
            raise too_much(f"calls {name} in a way that is not allowed")
        size = len(text)
        if name == "join" and args:
            args = (list(self.walked(args[0])),)
            size = self.budget.weigh(args[0]) + size * len(args[0])
        elif name == "replace" and len(args) > 1:
            size += text.count(args[0]) * len(args[1])
        elif name == "expandtabs":
            size += text.count("\t") * MAX_WIDTH
        elif "split" in name:
            size *= 8  # a list of that many pointers
        self.budget.spend(size)
        return args

    def _check_format(self, template: str, values: Any, pattern: re.Pattern[str]) -> None:
        """Every field may be as wide as the widest value or width."""
        widest = self.budget.weigh(values)
        fields = template.count("{") + template.count("%")
        if fields > 10_000:
            raise too_much(f"formats {fields} values at once")
        for field in pattern.finditer(template):
            numbers = [
                int(number) for number in field.groups() if number and number.isdecimal() and len(number) < 9
            ]
            if "*" in field[0] or "{" in field[0][1:] or max(numbers, default=0) > MAX_WIDTH:
                raise too_much("formats with a width that is not allowed")
            if any(number and len(number) > 4 for number in field.groups()):
                raise too_much("formats with a width that is not allowed")
            widest = max(widest, *numbers, 0)
        self.budget.spend(len(template) + fields * widest)

    def walked(self, values: Iterable[Any]) -> Iterator[Any]:
        """What a filter walks through, with a look at the clock now and then."""
        for step, value in enumerate(values):
            if not step & 255:
                self.budget.tick()
            yield value

    def _walking(self, function: Callable[..., Any]) -> Callable[..., Any]:
        first = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)  # keeps the mark that tells Jinja what to pass before the value
        def walking(*args: Any, **more: Any) -> Any:
            value = args[first]
            if isinstance(value, Iterable) and not isinstance(value, Undefined):
                args = (*args[:first], self.walked(cast(Iterable[Any], value)), *args[first + 1 :])
            return function(*args, **more)

        return walking

    def _printing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        cost = 16 if function is filters.do_title else 1  # a regular expression and a function call per word

        def printing(value: Any, *args: Any) -> Any:
            self.budget.spend(self.budget.weigh(value) * cost)
            return function(value, *args)

        return printing

    def _replace(self, value: Any, old: str, new: str, count: int | None = None) -> str:
        text, old, new = str(self.built(value)), str(old), str(new)
        self.budget.spend(len(text) + text.count(old) * len(new))
        return text.replace(old, new, -1 if count is None else count)

    def _indent(self, value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        text = str(self.built(value))
        space = len(width) if isinstance(width, str) else width
        self.budget.spend(len(text) + (text.count("\n") + 1) * space)
        return filters.do_indent(text, width, first, blank)

    def _format(self, value: Any, *args: Any, **more: Any) -> str:
        text = str(self.built(value))
        self._check_format(text, [*args, *more.values()], _PERCENT_WIDTH)
        return text % (more or args)


@pass_environment
def _join(box: Sandbox, value: Any, d: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        value = map(filters.make_attrgetter(box, attribute), value)
    parts = [str(box.built(part)) for part in box.walked(value)]
    box.budget.spend(sum(map(len, parts)) + len(d) * len(parts))
    return str(d).join(parts)


@pass_environment
def _sum(box: Sandbox, value: Any, attribute: str | int | None = None, start: float = 0) -> Any:
    if not isinstance(start, int | float):  # type: ignore[reportUnnecessaryIsInstance]
        raise too_much("adds up what are no numbers")
    return filters.sync_do_sum(box, value, attribute, start)


def _check_bits(left: Any, right: Any, power: int) -> None:
    bits = [value.bit_length() for value in (left, right) if isinstance(value, int)]
    if sum(bits) * max(abs(power), 1) > MAX_BITS:
        raise too_much("computes a number that is too large")


class Watched(NodeTransformer):
    """Puts the calls of `Sandbox` that keep the bounds into a template's syntax tree."""

    def generic_visit(self, node: nodes.Node, *args: Any, **more: Any) -> nodes.Node:
        """Every node, after its children."""
        super().generic_visit(node, *args, **more)
        if isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock):
            node.body = [nodes.ExprStmt(_call("tick", []), lineno=node.lineno), *node.body]
        elif isinstance(node, nodes.Concat):
            return _call("joined", node.nodes)
        elif isinstance(node, nodes.List | nodes.Dict) or _is_load(node):
            return node if _is_constant(node) else _call("built", [cast(nodes.Expr, node)])
        return node


def _is_load(node: nodes.Node) -> bool:
    """A tuple that is read, or the arguments that a macro was given beyond its own."""
    if isinstance(node, nodes.Name):
        return node.ctx == "load" and node.name in ("varargs", "kwargs")
    return isinstance(node, nodes.Tuple) and node.ctx == "load"


def _is_constant(node: Any) -> bool:
    try:
        node.as_const()
    except nodes.Impossible:
        return False
    return True


def _call(name: str, args: list[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), args, [], None, None)


class Generation(Extension):
    """`{% generation %}` marks what the model wrote, for training; here its body stands as it is."""

    tags = {"generation"}  # noqa: RUF012 -- as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """The body, in a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)

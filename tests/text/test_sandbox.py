"""Templates that mean harm: each must end soon, in a refusal."""

# ruff: noqa: E501 -- templates are easier to read on one line

import threading

import pytest

from headrace.base.errors import Refused
from headrace.text import sandbox
from headrace.text.template import ChatTemplate

LOOP = "{% for a in range(99999) %}"
HUGE = "{% set x = 'a' * 1000000 %}"
FOREVER = {
    "nested loops with empty bodies": LOOP * 3 + "{% endfor %}" * 3,
    "a filter that lets nothing through": LOOP
    + "{% for b in range(99999) if b < 0 %}{% endfor %}{% endfor %}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(99) }}",
    "a recursive loop": "{% for x in [1,2] recursive %}{% if loop.depth < 80 %}{{ loop([1,2]) }}{% endif %}{% endfor %}",
    "a call block": "{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}"
    + LOOP * 2
    + "{% endfor %}" * 2
    + "{% endcall %}",
    "filters that walk": LOOP + "{{ range(99999) | map('abs') | select | list | length }}{% endfor %}",
    "sorting": LOOP + "{{ range(99999) | sort | unique | list | length }}{% endfor %}",
    "joining": LOOP + "{{ range(99999) | join | length }}{% endfor %}",
    "a list inside itself, often": "{% set l = ['a'] %}" + "{% set l = [l, l] %}" * 60 + "{{ l }}",
    "a dict inside itself, often": "{% set l = {} %}"
    + "{% set l = dict(a=l, b=l) %}" * 60
    + "{{ l | tojson }}",
    "arguments inside arguments": "{% macro m(n) %}{% if n %}{{ m(n-1, varargs, varargs) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "keyword arguments too": "{% macro m(n) %}{% if n %}{{ m(n-1, a=kwargs, b=kwargs) }}{% endif %}{% endmacro %}{{ m(60) }}",
}
TOO_LARGE = {
    "a string times": "{{ 'a' * 10**10 }}",
    "times a string": "{{ 10**10 * 'a' }}",
    "a list times": "{% set l = [0] * 10**9 %}",
    "doubling by +": "{% set x = 'a' * 1000 %}" + "{% set x = x + x %}" * 40,
    "doubling by ~": "{% set x = 'a' * 1000 %}" + "{% set x = x ~ x %}" * 40,
    "doubling by set": "{% set x = 'a' * 1000 %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 40,
    "doubling in a loop": "{% set n = namespace(s='a') %}" + LOOP + "{% set n.s = n.s + n.s %}{% endfor %}",
    "output": HUGE + LOOP + "{{ x }}{% endfor %}",
    "much garbage": HUGE + "{% for i in range(999) %}{% set y = x + x %}{% endfor %}",
    "replace": HUGE + "{{ x.replace('a', x) }}",
    "replace nothing": HUGE + "{{ x.replace('', x) }}",
    "the filter replace": HUGE + "{{ x | replace('a', x) }}",
    "join": HUGE + "{{ x.join(range(999) | map('string')) }}",
    "the filter join": HUGE + "{{ range(999) | join(x) }}",
    "expandtabs": "{{ ('\t' * 100000).expandtabs(9000) }}",
    "indent": "{{ ('\n' * 100000) | indent(9000) }}",
    "split": "{{ ('a ' * 5000000).split() }}",
    "title": "{{ ('a ' * 5000000) | title }}",
    "many fields": HUGE + "{{ ('%s' * 20) % ((x,) * 20) }}",
    "a very long format": "{{ '%s' * 20000 % ((1,) * 20000) }}",
    "many braces": HUGE + "{{ ('{0}' * 200).format(x) }}",
    "json": HUGE + "{{ ([x] * 16) | tojson | length }}{{ [[x] * 16] * 2 }}",
}
NOT_ALLOWED = {
    "center": "{{ 'a'.center(10**10) }}", "ljust": "{{ 'a'.ljust(10**10) }}", "zfill": "{{ 'a'.zfill(10**10) }}",
    "translate": "{{ 'a'.translate({97: 'b'}) }}", "encode": "{{ 'a'.encode() }}",
    "to_bytes": "{{ (5).to_bytes(10**10, 'big') }}",
    "% width": "{{ '%99999d' % 1 }}", "% far width": "{{ '%99999999999d' % 1 }}", "% star": "{{ '%*d' % (9, 1) }}",
    "% precision": "{{ '%.99999f' % 1.5 }}", "% named": "{{ '%(a)99999d' % {'a': 1} }}", "filter format": "{{ '%99999d' | format(1) }}",
    "{} width": "{{ '{:99999}'.format(1) }}", "{} inner": "{{ '{:{}}'.format(1, 9) }}", "{} precision": "{{ '{:.99999f}'.format(1.5) }}",
    "format_map": "{{ '{a:99999}'.format_map({'a': 1}) }}",
    "json indent": "{{ [1] | tojson(indent=99999) }}", "json separators": "{{ [1] | tojson(separators=('a' * 99, ':')) }}",
    "sum of lists": "{{ [[1], [2]] | sum(start=[]) }}",
    "a large power": "{{ 9 ** (10 ** 9) }}", "a large product": "{% set n = namespace(i=3) %}" + LOOP + "{% set n.i = n.i * n.i %}{% endfor %}",
    "range": "{{ range(10**6) }}", "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursion in a block": "{% block a %}{{ self.a() }}{% endblock %}",
    "classes": "{{ ''.__class__.__mro__ }}", "changes": "{{ messages.append(1) }}", "lipsum": "{{ lipsum(n=9) }}",
    "include": "{% include '/etc/passwd' %}", "import": "{% import 'os' as os %}{{ os }}",
    "dict's own methods": "{{ dict.update({}, {}) }}", "division": "{{ 1 / 0 }}", "infinity": "{{ 10.0 ** 999 }}",
    "a dict with unhashable keys": "{{ {[]: 1} }}",
}  # fmt: skip
DEEP = {
    "blocks": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "loops": "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
    "brackets": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "sums": "{{ " + "1+" * 3000 + "1 }}",
    "characters": "x" * 200_001,
}
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("source", FOREVER.values(), ids=FOREVER)
def test_what_would_run_for_ever_is_stopped(source: str) -> None:
    with pytest.raises(
        Refused, match=r"ran for more than 0\.1 seconds; it was stopped|more than \d+ characters"
    ):
        ChatTemplate(source, seconds=0.1).render(MESSAGES)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("source", TOO_LARGE.values(), ids=TOO_LARGE)
def test_what_would_grow_too_large_is_stopped(source: str) -> None:
    with pytest.raises(Refused, match=r"more than \d+ characters|formats \d+ values"):
        ChatTemplate(source, seconds=10.0).render(MESSAGES)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("source", NOT_ALLOWED.values(), ids=NOT_ALLOWED)
def test_what_no_template_needs_is_refused(source: str) -> None:
    with pytest.raises(Refused, match="the chat template"):
        ChatTemplate(source).render(MESSAGES)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("source", DEEP.values(), ids=DEEP)
def test_sources_too_deep_or_too_long_are_refused(source: str) -> None:
    with pytest.raises(Refused, match="the chat template"):
        ChatTemplate(source)


FINE = {
    "{{ 'ab' * 3 }}{{ 3 * 'ab' }}{{ [1] * 2 }}{{ 2 * 3 }}{{ 2 ** 10 }}{{ 7 % 3 }}{{ 1.5 * 2 }}": "abababababab[1, 1]610241"
    "3.0",
    "{{ '%5.1f|%-4s|%%|%(' % (1.25, 'a') if false else '%5.1f|%-4s|%%' % (1.25, 'a') }}": "  1.2|a   |%",
    "{{ '%s and %s' | format(1, 'b') }}{{ '%(a)s' | format(a=1) }}": "1 and b1",
    "{{ '{} {x:>4}|{0!r}'.format('a', x=1) if false else '{0} {x:>4}'.format('a', x=1) }}": "a    1",
    "{{ '{a}'.format_map({'a': 1}) }}": "1",
    "{{ 'a,b'.split(',') | join('-') }}{{ ', '.join(['a', 'b']) }}{{ [1, 2] | join }}": "a-ba, b12",
    "{{ [{'n': 1}, {'n': 2}] | join(',', attribute='n') }}{{ [{'n': 1}, {'n': 2}] | sum('n') }}{{ [1, 2] | sum }}": "1,233",
    "{{ 'aXbX' | replace('X', '-') }}{{ 'aXbX' | replace('X', '-', 1) }}{{ 'aXbX'.replace('X', '') }}": "a-b-a-bXab",
    "{{ 'a\nb' | indent }}|{{ 'a\nb' | indent(2, true) }}|{{ 'a\nb' | indent('>') }}": "a\n    b|  a\n  b|a\n>b",
    "{{ ' a b ' | trim | title }}{{ 'a' | upper }}{{ 'Ab'.lower().center(4) }}{{ 'a\tb'.expandtabs(2) }}": "A BA ab a b",
    "{{ [3, 1, 2] | sort | first }}{{ [1, 1] | unique | list }}{{ [1, 2] | max }}{{ 'ab' | list }}{{ 'ba' | min }}": "1[1]2['a', 'b']a",
    "{{ [{'a': 1}, {'a': 2}] | selectattr('a', 'equalto', 2) | map(attribute='a') | list }}": "[2]",
    "{{ nothing | list }}{{ nothing | default('d') }}{{ nothing }}{{ nothing ~ 1 }}": "[]d1",
    "{% set n = namespace(a=1) %}{% set n.a = n.a + 1 %}{{ n.a }}{{ n }}": "2<namespace>",
    "{{ dict(a=1) }}{{ {'a': 1}.items() | list }}{{ {'b': 1, 'a': 2} | dictsort }}{{ {'a': 1} | items | list }}": "{'a': 1}[('a', 1)][('a', 2), ('b', 1)][('a', 1)]",
    "{% for a, b in [(1, 2), (3, 4)] %}{{ a + b }}{{ loop.length }}{{ loop.last }}{% else %}x{% endfor %}": "32False72True",
    "{% for a in [] %}{% else %}none{% endfor %}{% for a in [1, 2, 3] if a > 1 %}{{ loop.index }}{{ loop.length }}{% endfor %}": "none1222",
    "{% for a in [1, 2, 3] %}{% if a == 2 %}{% continue %}{% endif %}{{ a }}{{ loop.previtem }}{{ loop.nextitem }}{% endfor %}": "1232",
    "{% macro m(a, b=2) %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1) }}{{ m(1, 3, 4, c=5) }}": "12(){}13(4,){'c': 5}",
    "{% macro m() %}[{{ caller(1) }}]{% endmacro %}{% call(x) m() %}{{ x }}{% endcall %}": "[1]",
    "{% generation %}{% set a = 1 %}{{ a }}{% endgeneration %}{{ a }}": "1",
    "{{ [[1, 'a'], {'b': [none, true]}] }}{{ (1, 2) }}{{ [messages[0].role, 1] }}": "[[1, 'a'], {'b': [None, True]}](1, 2)['user', 1]",
    "{% filter upper %}a{% endfilter %}{% set x %}b{% endset %}{{ x }}{{ 'a' ~ 1 ~ none }}": "Aba1None",
    "{{ (5).bit_length() }}{{ 'abc'.startswith('a') }}{{ 'a' in 'abc' }}{{ range(3) | list }}{{ 1 if 2 > 1 }}": "3TrueTrue[0, 1, 2]1",
}


@pytest.mark.parametrize("source", FINE)
def test_honest_templates_render_as_in_plain_jinja(source: str) -> None:
    assert ChatTemplate(source).render(MESSAGES) == FINE[source]


def test_printing_something_large_looks_at_the_clock() -> None:
    with pytest.raises(Refused, match="ran for more than 0 seconds"):
        ChatTemplate("{{ x }}", seconds=0.0).render(MESSAGES, x=[1] * 5000)


def test_printing_something_too_large_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_TEXT", 1000)
    template = ChatTemplate("{{ x | length }}{{ x }}")
    assert template.render(MESSAGES, x=[1] * 9) == "9[1, 1, 1, 1, 1, 1, 1, 1, 1]"
    with pytest.raises(Refused, match="value of more than 1000 characters"):
        template.render(MESSAGES, x=[[1] * 20, [1] * 200])


def test_a_rendering_in_one_thread_does_not_use_up_another_s_time() -> None:
    template = ChatTemplate("{% for i in range(1000) %}{{ i }}{% endfor %}", seconds=30.0)
    expected, results = template.render(MESSAGES), []
    threads = [threading.Thread(target=lambda: results.append(template.render(MESSAGES))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4


def test_work_is_counted_anew_for_each_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_WORK", 1000)
    template = ChatTemplate("{{ 'a' * 400 }}")
    assert [len(template.render(MESSAGES)) for _ in range(5)] == [400] * 5
    with pytest.raises(Refused, match="1000 altogether"):
        ChatTemplate("{{ 'a' * 400 }}{{ 'a' * 400 }}{{ 'a' * 400 }}").render(MESSAGES)

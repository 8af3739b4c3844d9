"""The parts of a report that is one HTML file and loads nothing: head and style, tables, explanations."""

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from headrace.base.errors import Refused

STYLE = """
:root{color-scheme:light dark;--ink:#1d2329;--soft:#5d6873;--paper:#fff;--line:#dfe4e8;--warn:#9a5b00;--bad:#b3261e;
--good:#1b7f4b;--c0:#2867c9;--c1:#c8501e;--c2:#1b8a6b;--c3:#8a4fbf;--c4:#b08600;--c5:#c2316f}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaee;--soft:#9aa6b2;--paper:#14181c;--line:#2c343c;--warn:#e0a33c;
--bad:#ff8a80;--good:#6fd39f;--c0:#7fb0ff;--c1:#ff9a6b;--c2:#5fd3ae;--c3:#c79bf2;--c4:#e3c04a;--c5:#ff86b3}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:1320px;margin:0 auto;
padding:24px 20px 60px}
h1{font-size:24px;margin:0 0 4px}h2{font-size:18px;margin:36px 0 8px}h3{font-size:15px;margin:22px 0 6px}
p.sub,figcaption,caption,dd{color:var(--soft)}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:14px}
th,td{padding:4px 10px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}thead th{font-weight:600;color:var(--soft)}
td small{color:var(--soft);font-size:11px;display:block}
.warn{color:var(--warn)}.bad{color:var(--bad);font-weight:600}.good{color:var(--good)}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,480px),1fr));gap:18px}
figure{margin:0}svg{width:100%;height:auto}svg text{font-size:12px;fill:var(--soft)}
.mid{text-anchor:middle}.end{text-anchor:end}.grid{stroke:var(--line);fill:none}
polyline{fill:none;stroke-width:2}circle{stroke:none}
figcaption span{margin-right:16px;font-size:13px}figcaption span::before{content:"\\25CF\\00a0"}
pre{overflow-x:auto;padding:10px 12px;border:1px solid var(--line);border-radius:6px;font-size:13px}
dt{font-weight:600}dd{margin:0 0 8px}summary{cursor:pointer;font-weight:600;margin:18px 0 6px}
""" + "".join(
    f"polyline.c{n}{{stroke:var(--c{n})}}circle.c{n}{{fill:var(--c{n})}}"
    f"figcaption .c{n}::before{{color:var(--c{n})}}"
    for n in range(6)
)


def opening(title: str) -> str:
    """Everything up to the heading. `title` is HTML."""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"
    )


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Of HTML. It scrolls sideways where the page is too narrow."""
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def definitions(terms: Iterable[tuple[str, str]]) -> str:
    """What each number means, at the end."""
    entries = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in terms)
    return f"<h2>What the numbers mean</h2><dl>{entries}</dl>"


def settings(found: Mapping[str, object]) -> str:
    """How it was run: all that is known."""
    rows = [[escape(str(name)), escape(str(value))] for name, value in found.items() if value is not None]
    return "<h2>How it was run</h2>" + table(("", "value"), rows)


def write(path: Path, text: str) -> None:
    """Raises Refused."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as fault:
        raise Refused(f"{path} cannot be written: {fault.strerror}", param=path.suffix.lstrip(".")) from fault

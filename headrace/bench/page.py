"""The parts of a report that is one HTML file and loads nothing: head and style, tables, explanations."""

from collections.abc import Iterable, Mapping
from html import escape

STYLE = """
:root{color-scheme:light dark;--ink:#1d2329;--soft:#5d6873;--paper:#fff;--panel:#f5f7fa;--line:#dfe4e8;
--warn:#9a5b00;--bad:#b3261e;--good:#1b7f4b;--c0:#2867c9;--c1:#c8501e;--c2:#1b8a6b;--c3:#8a4fbf;--c4:#b08600;--c5:#c2316f}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaee;--soft:#9aa6b2;--paper:#14181c;--panel:#1c232b;--line:#2c343c;
--warn:#e0a33c;--bad:#ff8a80;--good:#6fd39f;--c0:#7fb0ff;--c1:#ff9a6b;--c2:#5fd3ae;--c3:#c79bf2;--c4:#e3c04a;--c5:#ff86b3}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:1320px;margin:0 auto;
padding:24px 20px 60px}
h1{font-size:24px;margin:0 0 4px}h2{font-size:18px;margin:36px 0 8px}h3{font-size:15px;margin:22px 0 6px}
p.sub,figcaption,caption,dd{color:var(--soft)}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:14px}
th,td{padding:4px 10px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}thead th{font-weight:600;color:var(--soft)}
td small{color:var(--soft);font-size:11px;display:block}td code{color:var(--soft);display:block}
table.words td:last-child{text-align:left;white-space:normal;overflow-wrap:anywhere}
.warn{color:var(--warn)}.bad{color:var(--bad);font-weight:600}.good{color:var(--good)}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,480px),1fr));gap:18px}
figure{margin:0}svg{width:100%;height:auto}svg text{font-size:12px;fill:var(--soft)}
.rest{fill:var(--line)}
.mid{text-anchor:middle}.end{text-anchor:end}.grid{stroke:var(--line);fill:none}
polyline{fill:none;stroke-width:2}circle{stroke:none}
figcaption span{margin-right:16px;font-size:13px;display:inline-block}figcaption span::before{content:"\\25CF\\00a0"}
pre{overflow-x:auto;padding:10px 12px;border:1px solid var(--line);border-radius:6px;font-size:13px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;margin:14px 0}
.tile{background:var(--panel);border-radius:8px;padding:10px 14px}.tile b{display:block;font-size:20px}
.tile span{color:var(--soft);font-size:13px}
.narrow body{max-width:860px}.narrow table{width:100%}.narrow .scroll{margin-top:8px}.narrow svg text{font-size:9px}
dt{font-weight:600}dd{margin:0 0 8px}summary{cursor:pointer;font-weight:600;margin:18px 0 6px}
""" + "".join(
    f"polyline.c{n}{{stroke:var(--c{n})}}circle.c{n},rect.c{n}{{fill:var(--c{n})}}"
    f"figcaption .c{n}::before{{color:var(--c{n})}}"
    for n in range(6)
)


def opening(title: str, narrow: bool = False) -> str:
    """Everything up to the heading. `title` is HTML. `narrow`: one column to be read, not charts side by side."""
    style = ' class="narrow"' if narrow else ""
    return (
        f'<!doctype html><html lang="en"{style}><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"
    )


def table(heads: Iterable[str], rows: Iterable[Iterable[str]], words: bool = False) -> str:
    """Of HTML, without a head where it is empty. It scrolls sideways where the page is too narrow.

    words   the last column is text, not numbers
    """
    head = "".join(f"<th>{name}</th>" for name in heads)
    head = head and f"<thead><tr>{head}</tr></thead>"
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    style = ' class="words"' if words else ""
    return f'<div class="scroll"><table{style}>{head}<tbody>{body}</tbody></table></div>'


def tiles(found: Iterable[tuple[str, str]]) -> str:
    """What matters most, large, each with a few words below."""
    each = (
        f'<div class="tile"><b>{escape(big)}</b><span>{escape(small)}</span></div>' for big, small in found
    )
    return f'<div class="tiles">{"".join(each)}</div>'


def definitions(terms: Iterable[tuple[str, str]]) -> str:
    """What each number means, at the end."""
    entries = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in terms)
    return f"<h2>What the numbers mean</h2><dl>{entries}</dl>"


def settings(found: Mapping[str, object]) -> str:
    """How it was run: all that is known."""
    rows = [[escape(str(name)), escape(str(value))] for name, value in found.items() if value is not None]
    return "<h2>How it was run</h2>" + table((), rows, words=True)

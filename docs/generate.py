"""Writes the pages that are made from the code: `make docs`."""

import re
from pathlib import Path

from headrace.base.config import Memory, Model, Schedule, describe, flat
from headrace.cli._knobs import flag
from headrace.cli.main import app
from headrace.serve.settings import Serve, ServeConfig

DOCS = Path(__file__).parent

KNOBS_HEAD = """# Knobs

Every setting of the engine, made from `headrace/base/config.py` by `make docs`, and of the server
(`headrace/serve/settings.py`), which only `headrace serve` has. In Python they are keyword arguments
(`LLM("smollm2-135m", **{"memory.share": 0.5})`, or vLLM's names for them); on the command line, flags of every
command that loads a model. A value that cannot be is refused by name; a misspelt name is answered with the nearest
one. Where no default stands, the plan decides, and `headrace inspect` shows what it decided.
"""
TABLE_HEAD = "| knob | flag | default | takes | what it does |\n|---|---|---|---|---|\n"

COMMANDS_HEAD = """# Commands

Made from `headrace/cli` by `make docs`. Every command also takes `--help`, and `--debug` for log and traceback. Where
it says *engine flags*, all of [knobs.md](knobs.md) are meant. Exit codes: 0 done, 1 something failed on our side, 2 it
cannot be done as asked, 130 stopped with Ctrl-C.
"""


def knobs() -> str:
    """docs/knobs.md: one table per branch of the tree."""
    parts = [KNOBS_HEAD]
    for branch in (Model, Memory, Schedule, Serve):
        prefix = branch.__name__.lower()
        parts.append(f"\n## {prefix}\n\n{branch.__doc__}\n\n{TABLE_HEAD}")
        for name, knob in flat(ServeConfig).items():
            if name.startswith(f"{prefix}."):
                default = "" if knob.default is None else f"`{knob.default}`"
                parts.append(f"| `{name}` | `{flag(name)}` | {default} | {describe(knob)} | {knob.help} |\n")
    return "".join(parts)


def commands() -> str:
    """docs/commands.md: every command's own arguments and flags."""
    page = app.generate_docs(output_format="markdown", recursive=True)
    page = page[page.index("\n## headrace ") :]
    page = re.sub(r"\*\*Model\*\*:\n.*?(?=\n##+ |\Z)", "*Engine flags.*\n", page, flags=re.DOTALL)
    return COMMANDS_HEAD + page.rstrip() + "\n"


PAGES = {"knobs.md": knobs, "commands.md": commands}


def main() -> None:
    for name, make in PAGES.items():
        (DOCS / name).write_text(make())
        print(f"docs/{name}")


if __name__ == "__main__":
    main()

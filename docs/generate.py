"""Writes the pages that are made from the code: `make docs`."""

from pathlib import Path

from headrace.base.config import Config, Memory, Model, Schedule, describe, flat

DOCS = Path(__file__).parent

KNOBS_HEAD = """# Knobs

Every knob there is, made from `headrace/base/config.py` by `make docs`. In Python they are keyword arguments
(`LLM("smollm2-135m", **{"memory.share": 0.5})`, or vLLM's names for them); on the command line `--help` shows
which of them a command takes. A value that cannot be is refused by name; a misspelt name is answered with the
nearest one.
"""
TABLE_HEAD = "| knob | default | takes | what it does |\n|---|---|---|---|\n"


def knobs() -> str:
    """docs/knobs.md: one table per branch of the tree."""
    parts = [KNOBS_HEAD]
    for branch in (Model, Memory, Schedule):
        prefix = branch.__name__.lower()
        parts.append(f"\n## {prefix}\n\n{branch.__doc__}\n\n{TABLE_HEAD}")
        for name, knob in flat(Config).items():
            if name.startswith(f"{prefix}."):
                default = "" if knob.default is None else f"`{knob.default}`"
                parts.append(f"| `{name}` | {default} | {describe(knob)} | {knob.help} |\n")
    return "".join(parts)


PAGES = {"knobs.md": knobs}


def main() -> None:
    for name, make in PAGES.items():
        (DOCS / name).write_text(make())
        print(f"docs/{name}")


if __name__ == "__main__":
    main()

"""The script that measures a GPU says what was reached, what was not, and why a part gave nothing."""

import sys
from pathlib import Path

import pytest

from tests.device import PARTS, Part, main, run

SAYS = """
import json, sys
from pathlib import Path
measures = [{"name": "a", "value": 2.0, "unit": "s", "better": "lower"},
            {"name": "b", "value": 2.0, "unit": "tok/s", "better": "higher"}]
Path(sys.argv[-1]).write_text(json.dumps({"measures": measures}))
"""


def test_numbers_stand_beside_what_is_wanted(tmp_path: Path):
    found = run("part", Part(("-c", SAYS), {"a": 2.0, "b": 3.0, "c": 1.0}), tmp_path)
    assert found == [
        ("a", "2.000 s", "reached 2"),
        ("b", "2.000 tok/s", "short of 3"),
        ("c", "-", "missing"),
    ]


@pytest.mark.parametrize(
    ("part", "wanted"),
    [
        (Part(("-c", "print('3 passed\\n')")), ("-", "3 passed", "passed")),
        (Part(("-c", "print('why'); raise SystemExit(3)"), {"a": 1.0}), ("-", "why", "failed (3)")),
        (Part(("-c", "import time; time.sleep(60)"), limit=0.3), ("-", "more than 0 s", "cut off")),
        (Part(("-c", ""), around=("no-such-tool",)), ("-", "no-such-tool", "failed")),
    ],
)
def test_a_part_that_gives_nothing_says_why(tmp_path: Path, part: Part, wanted: tuple[str, str, str]):
    ((measure, value, verdict),) = run("part", part, tmp_path)
    assert (measure, verdict) == (wanted[0], wanted[2])
    assert wanted[1] in value


def test_the_exit_code_says_whether_all_was_reached(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["device.py", "one", "--out", str(tmp_path / "new")])
    for wanted, code in ((3.0, 0), (1.0, 1)):
        monkeypatch.setitem(PARTS, "one", Part(("-c", SAYS), {"a": wanted}))
        assert main() == code
    assert "reached 3" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["device.py", "none"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "unknown part 'none'; there are llama" in capsys.readouterr().err

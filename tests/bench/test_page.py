"""The parts of reports."""

from headrace.bench.page import settings, table


def test_settings_are_escaped_and_what_is_unknown_is_left_out():
    text = settings({"<a>": "&", "b": None})
    assert "<td>&lt;a&gt;</td><td>&amp;</td>" in text
    assert "b</td>" not in text


def test_a_table_needs_no_head_and_may_end_in_words():
    assert "<thead>" not in table((), [["a", "b"]])
    assert '<table class="words"><thead><tr><th>x</th>' in table(("x", "y"), [["a", "b"]], words=True)

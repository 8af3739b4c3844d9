"""What is kept, for how long, and by whom it is seen."""

from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from headrace.serve.shelf import OVERHEAD, Kept, Shelf


def kept(size: int = 0) -> Kept:
    return Kept({"id": "x", "text": "a" * size})


def test_what_is_put_is_got_back():
    shelf = Shelf(10_000)
    one = Kept({"status": "completed"}, [{"role": "user"}], [{"role": "user", "content": "é"}], True)
    assert shelf.put("1", one)
    assert shelf.get("1") == one
    assert shelf.get("2") is None
    assert shelf.drop("1")
    assert not shelf.drop("1")
    assert shelf.size == 0


def test_the_least_recently_used_makes_room():
    shelf = Shelf(4000)
    for name in "abc":
        assert shelf.put(name, kept(800))
    shelf.get("a")
    shelf.put("d", kept(800))
    assert [name for name in "abcd" if shelf.get(name)] == ["a", "c", "d"]


def test_what_is_too_large_takes_no_room():
    shelf = Shelf(4000)
    shelf.put("a", kept(800))
    shelf.put("b", kept(800))
    assert not shelf.put("b", kept(5000))
    assert shelf.get("b") is None
    assert shelf.get("a")
    assert not Shelf(0).put("a", kept())


def test_a_full_disk_costs_what_was_to_be_kept_and_nothing_else(caplog: pytest.LogCaptureFixture):
    shelf = Shelf(10_000_000)
    shelf.put("a", kept(100))
    shelf._base.execute("PRAGMA max_page_count = 20")
    assert not shelf.put("b", kept(1_000_000))
    assert "cannot be kept" in caplog.text
    assert shelf.put("c", kept(100))
    assert [name for name in "abc" if shelf.get(name)] == ["a", "c"]


def test_what_a_process_was_making_is_known():
    shelf = Shelf(10_000)
    for name, maker in (("a", 1), ("b", 2), ("c", None), ("d", 1)):
        shelf.put(name, kept(), maker)
    shelf.put("d", kept())  # it has ended
    assert shelf.left_by(1) == ["a"]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(-300, 900)), max_size=40))
@settings(max_examples=60)
def test_the_sum_is_right_and_bounded(work: list[tuple[str, int]]):
    shelf = Shelf(2500)
    for name, size in work:
        if size < 0:
            shelf.drop(name)
        else:
            assert shelf.put(name, kept(size))
        there = [one for name in "abcdef" if (one := shelf.get(name))]
        least = sum(len(one.response["text"]) + OVERHEAD for one in there)
        assert least <= shelf.size <= 2500
        assert bool(shelf.size) == bool(there)


def test_processes_share_a_file(tmp_path: Path):
    one, other = Shelf(10_000, tmp_path / "kept"), Shelf(10_000, tmp_path / "kept")
    one.put("a", kept(10))
    assert other.get("a") == kept(10)
    other.put("b", kept(20))
    assert one.size == other.size
    assert one.drop("b")
    assert other.get("b") is None

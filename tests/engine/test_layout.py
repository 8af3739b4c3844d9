"""Layer groups: every layer has a place of its own, and one block size serves all."""

import hypothesis.strategies as st
from hypothesis import given

from headrace.engine.blocks import Group
from headrace.engine.layout import WASTE, lay_out


@given(st.lists(st.sampled_from([None, 4, 512]), min_size=1, max_size=60))
def test_every_layer_has_its_own_place_and_little_is_wasted(windows):
    layout = lay_out(windows)
    assert len(set(layout.places)) == len(windows)
    assert all(
        layout.groups[place.group].window == w for place, w in zip(layout.places, windows, strict=True)
    )
    assert all(place.tensor < layout.depth for place in layout.places)
    assert len(layout.groups) * layout.depth - len(windows) <= WASTE * len(windows)


def test_layers_that_are_all_alike_make_one_group():
    assert lay_out([None] * 32).groups == (Group(None),)
    assert lay_out([None] * 32).depth == 32


def test_alternating_layers_make_two_groups():
    layout = lay_out([4096, None] * 13)
    assert layout.groups == (Group(4096), Group(None))
    assert layout.depth == 13


def test_five_windows_to_one_full_share_blocks_of_four_layers():
    layout = lay_out([None if i % 6 == 5 else 512 for i in range(26)])
    assert layout.depth == 4
    assert [group.window for group in layout.groups].count(None) == 1
    assert len(layout.groups) == 7

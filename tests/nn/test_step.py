"""The plainest step."""

from types import SimpleNamespace

import torch

from headrace.nn.step import Whole


def layer(window: int | None):
    return SimpleNamespace(window=window, scale=0.5, softcap=None, rotate=lambda q, k, positions: (q, k))


def test_positions_and_ids():
    step = Whole(torch.tensor([7, 8, 9]))
    assert step.ids.tolist() == [7, 8, 9]
    assert step.positions.tolist() == [0, 1, 2]


def test_each_token_sees_itself_and_what_a_window_leaves():
    step = Whole(torch.zeros(4, dtype=torch.int64))
    q = torch.zeros(4, 2, 3)  # equal scores: the output is the mean of what is seen
    v = torch.arange(4.0)[:, None, None].expand(4, 1, 3).contiguous()
    means = {
        None: [0, 0.5, 1, 1.5],
        1: [0, 1, 2, 3],
        2: [0, 0.5, 1.5, 2.5],
        3: [0, 0.5, 1, 2],
        4: [0, 0.5, 1, 1.5],
    }
    for window, wanted in means.items():
        out = step.attend(layer(window), q, v, v)
        assert out.shape == (4, 2, 3)
        torch.testing.assert_close(out[:, 1, 2], torch.tensor(wanted, dtype=torch.float32))

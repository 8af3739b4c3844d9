"""KL, agreement and perplexities against the book, on two tiny models."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from headrace.base.errors import Refused
from headrace.bench import divergence
from headrace.bench.divergence import ALL, compare, read, windows
from headrace.bench.plain import Plain, as_judged, label, open_plain
from tests.tiny import config, folder, logits

TEXT = "The water of the headrace reaches the wheel, and the wheel turns. " * 8


def opened(at: Path, quantization: str = "auto") -> Plain:
    return open_plain(as_judged(config(at), str(at), quantization))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Plain:
    return opened(folder(tmp_path_factory.mktemp("base") / "m", seed=1))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Plain:
    return opened(folder(tmp_path_factory.mktemp("other") / "m", seed=2))


def test_by_the_book(base: Plain, other: Plain, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(divergence, "LOGITS", 7 * base.decoder.shape.vocab)  # several pieces
    ids = base.tokenizer.encode(TEXT)[:40]
    (found,) = read(base, [other], ids)
    p, q = (torch.log_softmax(logits(model.decoder, ids).double(), 1)[:-1] for model in (base, other))
    targets = torch.tensor(ids[1:])
    assert found.kl == pytest.approx((p.exp() * (p - q)).sum(1).numpy(), abs=1e-9)
    assert np.array_equal(found.same, (p.argmax(1) == q.argmax(1)).double().numpy())
    assert found.base == pytest.approx(-p[range(39), targets].numpy())
    assert found.other == pytest.approx(-q[range(39), targets].numpy())
    assert found.kl.min() > 0


def test_a_model_is_not_far_from_itself(base: Plain):
    ((row,),) = compare(base, [base], windows(base, [base], {"t": TEXT}, 30, None))
    assert abs(row.kl.value) < 1e-12
    assert row.top1.value == row.ratio.value == 1
    assert row.base == row.other


def test_rows_and_their_sum(base: Plain, other: Plain):
    told: list[tuple[int, int]] = []
    cut = windows(base, [other, base], {"a": TEXT, "b": TEXT[::-1]}, 30, 3)
    rows = compare(base, [other, base], cut, lambda done, of: told.append((done, of)))
    assert told[-1] == (180, 180)
    assert len(told) == 6
    (one, two, both), itself = rows
    assert [one.text, two.text, both.text] == ["a", "b", ALL]
    assert (one.windows, one.tokens, both.windows, both.tokens) == (3, 90, 6, 180)
    assert both.kl.value == pytest.approx((one.kl.value + two.kl.value) / 2)
    assert both.ratio.value == pytest.approx(both.other.value / both.base.value)
    assert both.p99.value >= both.kl.value
    assert itself[-1].kl.value == pytest.approx(0, abs=1e-12)


def test_pairs_have_smaller_errors_than_their_parts(base: Plain):
    rounded = opened(Path(base.name), "w8a16")
    ((row,),) = compare(base, [rounded], windows(base, [rounded], {"t": TEXT}, 60, None))
    assert rounded.said == f"{base.name} as w8a16"
    assert 0 < row.kl.value < 0.01
    assert row.ratio.error < row.base.error / row.base.value / 10


def test_other_vocabularies_are_refused(base: Plain, tmp_path: Path):
    at = folder(tmp_path / "m")
    settings = (at / "config.json").read_text().replace('"vocab_size": ', '"vocab_size": 1')
    (at / "config.json").write_text(settings)
    stranger = open_plain(config(at, **{"model.dummy_weights": True}))
    with pytest.raises(Refused, match="vocabularies of"):
        compare(base, [stranger], {"t": [[1, 2, 3]]})


def test_other_tokens_are_refused(base: Plain, other: Plain, tmp_path: Path):
    at = folder(tmp_path / "m")
    words = (at / "tokenizer.json").read_text().replace('"a": ', '"%": ', 1).replace('"b": ', '"a": ', 1)
    words = words.replace('"%": ', '"b": ', 1)
    (at / "tokenizer.json").write_text(words)
    with pytest.raises(Refused, match="into different tokens"):
        windows(base, [other, opened(at)], {"t": "ababab"}, 4, None)


def test_windows_longer_than_either_can_read_are_refused(base: Plain, other: Plain):
    with pytest.raises(Refused, match="can predict"):
        windows(base, [other], {"t": TEXT}, base.longest, None)


def test_what_is_judged_is_what_the_checkpoint_says(tmp_path: Path):
    at = folder(tmp_path / "m")
    assert as_judged(config(at), str(at)).model.quantization == "none"
    assert as_judged(config(at), str(at), "w8a8").model.quantization == "w8a8"
    settings = json.loads((at / "config.json").read_text())
    (at / "config.json").write_text(json.dumps(settings | {"quantization_config": {"quant_method": "fp8"}}))
    assert as_judged(config(at), str(at)).model.quantization == "checkpoint"


def test_labels():
    assert label("m", "none") == label("m", "checkpoint") == "m"
    assert label("m", "fp8") == "m as fp8"


def test_what_a_model_holds_impossible_is_no_fault():
    p = torch.tensor([[0.0, -math.inf, -math.inf]], dtype=torch.float64)
    q = torch.tensor([[math.log(0.5), math.log(0.5), -math.inf]], dtype=torch.float64)
    found = divergence._compared(p, q, torch.tensor([0]))
    assert found.kl == pytest.approx([math.log(2)])

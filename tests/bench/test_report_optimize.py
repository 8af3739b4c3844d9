"""The report of an optimization: one file, whole, without anything from elsewhere."""

import json
from dataclasses import replace

import pytest

from headrace.bench.report_optimize import document, html
from tests.bench.made_story import outcome, story
from tests.bench.pages import alone


def test_it_is_whole_and_has_what_was_done():
    text = html(story())
    charts = list(alone(text).iter("svg"))
    assert "<b>smollm2" not in text
    assert "&lt;processor&gt;" in text
    assert "269 MB became 109 MB (40.5%)" in text
    assert "perplexity +3.10%" in text
    assert "1.93 times as fast" in text
    assert "0.0412<small>± 0.0021</small>" in text
    assert "scheme: w4a16_g64" in text
    assert "after an interruption" in text
    assert text.count("as it was</td>") == 8
    assert {chart.get("role") for chart in charts} == {"img"}
    assert [chart.get("aria-label") for chart in charts] == [
        "output error over block",
        "output error over block",
        "mean KL, self_attn in w4a16_g64 over block",
        "mean KL, mlp in w4a16_g64 over block",
        "mean KL, self_attn in w8a16 over block",
        "mean KL, mlp in w8a16 over block",
        "loss foreseen, mean KL over bits per weight",
    ]
    for name in ("q_proj", "down_proj"):
        assert f"<title>{name}: 29, " in text


def test_what_was_not_measured_is_left_out():
    said = replace(story(), quality=(), speed=None, sensitivity={}, frontier=())
    text = html(said)
    assert "was not measured" in text
    for word in ("Sensitivity by", "Frontier", "tokens per second"):
        assert word not in text
    assert document(said)["speed"] is None


def test_a_model_whose_layers_have_no_numbers_has_a_report():
    made = outcome(1)
    text = html(replace(story(), outcome=replace(made, layers=made.layers[-1:])))
    assert "Output error by" not in text
    assert "All 1 layers" in text


def test_the_same_as_json():
    found = json.loads(json.dumps(document(story(2)), allow_nan=False))
    assert found["format"] == 1
    assert found["outcome"]["layers"][7]["scheme"] == "w4a16_g64"
    assert found["outcome"]["recipe"]["scheme"] == "w4a16_g64"
    assert found["quality"][0]["kl"] == {"value": 0.0412, "error": 0.0021}
    assert found["quality"][-1]["kl"]["error"] is None
    assert found["speed"]["after"]["per_second"] == 40.5
    assert found["frontier"][2] == {"bits": 5.0, "loss": 0.03, "taken": True}
    assert found["run"]["benchmark"] == "optimize"


@pytest.mark.parametrize(
    ("size", "said"), [(999, "999 bytes"), (12_345, "12.3 kB"), (2_500_000_000_000, "2,500 GB")]
)
def test_sizes(size: int, said: str):
    assert said in html(replace(story(2), outcome=replace(outcome(2), before=size)))

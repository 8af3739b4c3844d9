"""A made-up optimization to report."""

from pathlib import Path

from headrace.bench.divergence import ALL, Divergence
from headrace.bench.estimate import Estimate
from headrace.bench.report_optimize import Point, Speed, Story
from headrace.bench.result import Result
from headrace.optimize.outcome import Layer, Outcome
from headrace.optimize.recipe import Recipe

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
PARTS = [*(f"self_attn.{name}" for name in ATTENTION), *(f"mlp.{name}" for name in MLP)]


def row(text: str, tokens: int = 4096) -> Divergence:
    kl, p99, top1 = Estimate(0.0412, 0.0021), Estimate(0.51, 0.04), Estimate(0.912, 0.006)
    perplexities = Estimate(5.84, 0.21), Estimate(6.02, 0.22), Estimate(1.031, 0.004)
    return Divergence(text, 8, tokens, kl, p99, top1, *perplexities)


def outcome(blocks: int = 30, out: Path = Path("out"), model: str = "<b>smollm2-135m") -> Outcome:
    layers: list[Layer] = []
    for n in range(blocks):
        scheme, bits = ("w4a16_g64", 4.25) if n else ("none", 16.0)
        for k, part in enumerate(PARTS):
            error = 0.05 * (1 + k) * (1 + n / blocks) if n else 0.0
            name, sizes = f"model.layers.{n}.{part}", (576 * 576 * 2, 576 * 576 // 2)
            layers.append(Layer(name, scheme, "gptq", bits, *sizes, error, 0.4))
    head = Layer("lm_head", "none", "gptq", 16.0, 10, 10, 0.0, 0.0)
    recipe = Recipe.parse({"scheme": "w4a16_g64", "passes": ["gptq"]})
    return Outcome(
        model, Path("in"), out, recipe, (*layers, head), 269_000_000, 109_000_000, 65536, 312.0, True
    )


def story(blocks: int = 30, out: Path = Path("out")) -> Story:
    made = outcome(blocks, out)
    names = [layer.name for layer in made.layers if layer.scheme != "none"]
    return Story(
        made,
        Result("optimize", {"cpu": "a <processor>", "cores": 2}, {"torch": "2"}, None, {"device": "cpu"}),
        [row("gsm8k"), row("hamlet"), row(ALL, 8192)._replace(kl=Estimate(0.04, float("nan")))],
        (Speed("none, float32", 21.0, 92.0), Speed("checkpoint, float32", 40.5, 80.1)),
        {
            name: {"w4a16_g64": 1e-3 * (n % 7 + 1), "w8a16": 1e-5 * (n % 5 + 1)}
            for n, name in enumerate(names)
        },
        [Point(3.5, 0.3), Point(4.25, 0.08), Point(5.0, 0.03, True), Point(8.25, 0.001)],
    )

"""How long a token takes of a model whose layers are kept in several schemes: one stream, token after token."""

from dataclasses import dataclass, replace

from headrace.base.errors import Refused
from headrace.plan.cost import Setup, joined
from headrace.plan.options import Option
from headrace.plan.scheme import SCHEMES

LIKE = {
    "w4a16": "w4a16",
    "w8a16": "w8a16",
    "w8a8": "int8",
    "int8": "int8",
    "fp8": "fp8",
    "nvfp4": "nvfp4",
    "none": "bf16",
}
"""Of which of this planner's schemes those of layers are, by how their names begin."""


@dataclass(frozen=True, slots=True)
class Mixed:
    """A model's time per token, split at its layers. `rest`: seconds that do not go for the blocks' matrices."""

    setup: Setup
    rest: float

    def seconds(self, scheme: str, weights: int, size: int) -> float:
        """Of one layer of so many weights in so many bytes; each layer as all of them would be (see cost.parts).

        Raises Refused for a scheme that nothing is known of.
        """
        name = like(scheme)
        setup, kept = self.setup, SCHEMES[name]
        read = size / (setup.gpu.bandwidth * setup.reach.of("weights", name) * setup.gpus)
        speed = setup.gpu.speed(kept.arithmetic) * setup.reach.of("matmul", name) * setup.gpus
        return float(joined(read, 2 * weights / speed))


def like(scheme: str) -> str:
    """The planner's name for a layer's scheme. Raises Refused where there is none."""
    stem = scheme.partition("_")[0]
    if stem not in LIKE:
        raise Refused(
            f"how fast {scheme} is, the planner does not know",
            param="schemes",
            hint=f"known are: {', '.join(LIKE)}",
        )
    return LIKE[stem]


def mixed(option: Option) -> Mixed:
    """Of a dense model on a device, `option.work` with one request at a time; its scheme does not matter.

    Raises Refused where the model has experts, or does not fit.
    """
    if option.anatomy.routed:
        raise Refused(f"{option.anatomy.name} has experts; only dense models are searched", param="model")
    alone = replace(option.asked(concurrency=1, draft=None), scheme="bf16")
    made = alone.forecast
    if made is None:
        raise Refused(
            f"{option.anatomy.name} does not fit on {option.gpus} x {option.gpu.name} in 16 bits",
            param="gpu",
            hint="name a larger device",
        )
    setup = alone.setup
    whole = Mixed(setup, 0.0).seconds("none", option.anatomy.linear, 2 * option.anatomy.linear)
    return Mixed(setup, made.tpot - whole)

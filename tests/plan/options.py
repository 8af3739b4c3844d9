"""Options to try things on."""

from typing import Any

from headrace.plan.anatomy import dissect
from headrace.plan.efficiency import ENGINES
from headrace.plan.gpus import GPUS
from headrace.plan.known import KNOWN
from headrace.plan.options import Option
from headrace.plan.workload import Workload


def option(model: str = "llama-3.1-8b", gpu: str = "h200", engine: str = "headrace", **more: Any) -> Option:
    """`model` on `gpu`; `work` may be a dict of a workload's fields."""
    work = Workload()._replace(**more.pop("work", {}))
    return Option(dissect(model, KNOWN[model]), GPUS[gpu], ENGINES[engine], work, **more)

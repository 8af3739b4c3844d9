"""A whole run: decide, look ahead, walk, write."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from headrace.checkpoint.rows import stored_bytes
from headrace.optimize.cost import Cost
from headrace.optimize.job import Job, look
from headrace.optimize.outcome import Layer, Outcome
from headrace.optimize.output import write_rest, write_shards
from headrace.optimize.preflight import Preflight, files_size, preflight
from headrace.optimize.recipe import NONE, Recipe
from headrace.optimize.walk import Report, Walk
from headrace.optimize.work import RESULT, Work, folder_of, room


def run(
    model: str,
    out: str,
    recipe: Recipe,
    *,
    device: str = "auto",
    fresh: bool = False,
    progress: Report | None = None,
) -> Outcome:
    """Make the folder `out` from a model by a recipe.

    Killed at any time and started again with the same arguments it goes on where it stood; `fresh` throws away what
    there is. `progress` is told what is being done, and of how many expected seconds how many are done.

    Raises Refused before any work for what cannot be done, and where the disk is full; then nothing is lost or half
    written.
    """
    job = look(model, out, recipe, device, progress and (lambda text: progress(text, 0.0, 0.0)))
    return execute(job, preflight(job), fresh, progress)


def execute(
    job: Job,
    ahead: Preflight,
    fresh: bool = False,
    progress: Report | None = None,
    beside: Mapping[str, Any] | None = None,
) -> Outcome:
    """What `run` does once it is decided. beside: more JSON files to lie in the folder, by name."""
    folder = folder_of(job.out)
    with room(folder, ahead.cost.disk), Work(job.out, job.identity(), fresh) as work:
        with work.threads():
            layers, seconds = _walked(job, work, ahead.cost, progress)
        after = write_shards(work, work.journal["parts"])
        found = _outcome(job, tuple(layers), after, seconds, work.resumed)
        write_rest(job, work.folder / RESULT, found, beside or {})
        work.finish()
    return found


def _walked(job: Job, work: Work, cost: Cost, progress: Report | None) -> tuple[list[Layer], float]:
    if "parts" in work.journal:  # all that is left is to join them
        return [Layer(**each) for each in work.journal["layers"]], float(work.journal["seconds"])
    walk = Walk(job, work, cost, progress)
    parts = walk.run()
    work.note(parts=parts, layers=[asdict(each) for each in walk.layers], seconds=walk.seconds)
    work.forget("hidden-*")
    return walk.layers, walk.seconds


def _outcome(job: Job, rounded: tuple[Layer, ...], after: int, seconds: float, resumed: bool) -> Outcome:
    found, source, width = {layer.name: layer for layer in rounded}, job.open(), job.dtype.itemsize
    layers = []
    for names, linear in job.build().linears():
        for name, rows in zip(names, linear.outputs, strict=True):
            as_it_was = Layer(name, NONE, "", 8 * width, 0, rows * linear.inputs * width, 0.0, 0.0)
            layer = found.get(name, as_it_was)
            layers.append(replace(layer, before=stored_bytes(source, f"{name}.weight")))
    tokens = 0 if job.ids_ST is None else job.ids_ST.numel()
    before = files_size(job.path)
    return Outcome(
        job.model, job.path, job.out, job.recipe, tuple(layers), before, after, tokens, seconds, resumed
    )

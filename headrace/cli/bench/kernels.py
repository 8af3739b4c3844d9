"""Times kernels one by one, each against its floor and the library's."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.table import Table

from headrace.base.errors import Broken, Refused
from headrace.cli._print import table as table_of
from headrace.cli._print import tell
from headrace.cli.bench._report import FileFlags, Files, Report

if TYPE_CHECKING:
    from headrace.bench.kernels import Outcome
    from headrace.bench.replay import Limits

Shapes = Annotated[tuple[str, ...], Parameter(negative=())]


def run(
    kernels: Annotated[list[str] | None, Parameter(name="KERNEL", negative=())] = None,
    /,
    *,
    shape: Shapes = ("llama-3.1-8b", "qwen3-0.6b"),
    deterministic: Annotated[bool, Parameter(negative=())] = False,
    kv_dtype: Literal["auto", "fp8"] = "auto",
    tune: Annotated[bool, Parameter(negative=())] = False,
    table: Path | None = None,
    files: FileFlags = Files(),
) -> None:
    """Time kernels on a GPU: against their floor in bytes or operations, and against cuBLAS, SDPA or torch.

    Kernels: norm, silu, embed, rotate, sample, linear, linear8, linear4, round8, decode, prefill. Each is checked
    against its definition in float32 first; one that fails is not timed, and the command exits with 1. Floors are by
    what a copy and a large product reach on this device.

    Parameters
    ----------
    kernels
        names of kernels; all if none is named
    shape
        a model's shape, such as llama-3.1-8b; may be given several times
    deterministic
        run them as engines with schedule.deterministic do
    kv_dtype
        type of the KV cache: auto (bfloat16) or fp8
    tune
        look for the fastest configurations of linear, linear8, linear4, decode and prefill instead, and write them
        into --table
    table
        file of --tune; default: kernels/sm_XY.json beside the models, which is read at every start
    """
    if table is not None and not tune:
        raise Refused("--table is given without --tune; it says where to write what was found", param="table")
    if tune and (deterministic, kv_dtype, files) != (False, "auto", Files()):
        raise Refused(
            "--tune is for the ordinary way, and writes a table and no result",
            param="tune",
            hint="leave out --deterministic, --kv-dtype, --output and --compare",
        )
    report = files.begin("kernels")
    _need_gpu()
    if not tune:
        _measure(tuple(kernels or ()), shape, deterministic, kv_dtype, report)
    else:
        from headrace.bench.kernels_tune import TUNED
        from headrace.bench.kernels_tune import tune as find_fastest

        tell(f"written to {find_fastest(tuple(kernels or TUNED), shape, table, tell)}")


def _measure(
    kernels: tuple[str, ...], shapes: tuple[str, ...], deterministic: bool, kv_dtype: str, report: Report
) -> None:
    import torch

    from headrace.bench.kernels import KERNELS, Selection
    from headrace.bench.kernels import run as run_all
    from headrace.bench.kernels_case import Way
    from headrace.bench.replay import limits as measure_limits

    way = Way(deterministic, torch.float8_e4m3fn if kv_dtype == "fp8" else torch.bfloat16)
    selection = Selection(kernels or KERNELS, shapes, way)
    selection.cases()  # refuses unknown names before anything runs
    limits = measure_limits()
    outcomes = run_all(selection, tell)
    settings = {"kernels": selection.kernels, "shapes": shapes, "deterministic": deterministic}
    settings |= {"kv_dtype": kv_dtype, **limits._asdict()}
    measures = [measure for outcome in outcomes for measure in outcome.measures(limits)]
    report.show(settings, measures, torch.cuda.get_device_name(), shown(outcomes, limits))
    if wrong := [outcome.name for outcome in outcomes if not outcome.sound]:
        raise Broken(f"{len(wrong)} kernels do not give what they are defined to: {', '.join(wrong[:5])}")


def shown(outcomes: "list[Outcome]", limits: "Limits") -> Table:
    """One line per case."""

    def cells(outcome: "Outcome") -> list[str]:
        floor = limits.floor_us(outcome.case.bytes, outcome.case.operations)
        error = f"{outcome.error:.1e}" if outcome.sound else f"[red]{outcome.error:.1e}[/]"
        numbers = ["not timed", f"{floor:.1f}", "", "", ""]
        if outcome.took is not None:
            us = outcome.took.us
            numbers = [f"{us:.1f}", f"{floor:.1f}", f"{floor / us:.0%}", "", ""]
            if outcome.library is not None:
                numbers[3:] = [f"{outcome.library.us:.1f}", f"{outcome.library.us / us:.2f}x"]
        return [outcome.shape, outcome.case.kernel, outcome.case.name, *numbers, error]

    said = f"{limits.bandwidth / 1e12:.2f} TB/s, {limits.arithmetic / 1e12:.0f} TFLOP/s"
    heads = ("shape", "kernel", "case", "us", "floor", "of it", "library", "gain", "error")
    return table_of(heads, map(cells, outcomes), words=range(3), title=f"kernels; floors by {said}")


def _need_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise Refused(
            "kernels are timed on a CUDA device; none is usable from here", hint="see `headrace doctor`"
        )

"""Says what this machine is, what will be used, and what is missing."""

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from headrace import __version__
from headrace.base.config import Config, Model
from headrace.base.errors import Fault
from headrace.base.hardware import Hardware, probe
from headrace.base.words import dtype_name, size
from headrace.cli._print import sheet, table, write_json

PACKAGES = (
    "torch", "triton", "numpy", "safetensors", "pyyaml", "tokenizers", "huggingface-hub", "jinja2", "msgspec",
    "rich", "prompt_toolkit", "cyclopts", "fastapi", "uvicorn", "pyzmq", "llguidance", "prometheus-client",
)  # fmt: skip
OPTIONAL = {"triton": "kernels on an NVIDIA GPU; CUDA builds of torch bring it"}
FLAGS = {
    "avx2": "vectors of 256 bits",
    "avx512f": "vectors of 512 bits",
    "avx512_vnni": "products of 8-bit integers",
    "avx512_bf16": "products of bfloat16",
    "amx_bf16": "tiles of bfloat16",
    "amx_int8": "tiles of 8-bit integers",
    "asimd": "vectors of 128 bits",
    "bf16": "products of bfloat16",
    "i8mm": "products of 8-bit integers",
}
"""CPU features, as Linux calls them on x86 and Arm, that make a difference here."""
HEAD_DIM = 64
"""That of the default model; what an attention back end is asked about."""


Findings = dict[str, str]
"""What is to be mended, and how."""


def run(*, json: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Say what this machine is, what will be used, and what is missing with what to do about it.

    Exits with 1 if something that is needed is missing.

    Parameters
    ----------
    json
        print JSON instead of tables
    """
    with Console(stderr=True).status("looking"):
        report = examine()
    if json:
        write_json(report)
    else:
        _show(report)
    return 1 if report["missing"] else 0


def examine() -> dict[str, Any]:
    """All there is to say, in plain values; sizes in bytes."""
    hardware = probe()
    missing: Findings = {}
    wishes: Findings = {}
    report: dict[str, Any] = {
        "headrace": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": _packages(missing),
        "cpu": _cpu(hardware),
        "memory": {"total": hardware.memory_bytes, "free": hardware.free_bytes},
        "gpus": [],
        "will_use": {},
    }
    if find_spec("torch") is not None:
        report |= _torch(missing, wishes)
    report["cache"] = _cache(wishes)
    for name, found in (("missing", missing), ("better", wishes)):
        report[name] = [{"problem": problem, "remedy": remedy} for problem, remedy in found.items()]
    return report


def _packages(missing: Findings) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
            if name not in OPTIONAL:
                missing[f"the package {name} is not installed"] = f"pip install {name}"
    return found


def _cpu(hardware: Hardware) -> dict[str, Any]:
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "name": hardware.cpu_name,
        "cores": os.cpu_count(),
        "allowed_cores": affinity,
        "usable_cores": hardware.cores,
        "flags": [flag for flag in FLAGS if flag in hardware.cpu_flags],
    }


def _torch(missing: Findings, wishes: Findings) -> dict[str, Any]:
    """What torch sees, and what the engine will take. A torch that cannot be loaded is a finding."""
    try:
        import torch
    except (ImportError, OSError) as fault:
        missing[f"torch cannot be loaded: {fault}"] = "install it again: pip install --force-reinstall torch"
        return {}
    from headrace.engine.resolve import pick_attention, pick_device, pick_dtype

    gpus = list(_gpus(wishes))
    if not gpus and Path("/proc/driver/nvidia/version").exists():
        problem = f"there is an NVIDIA driver, and torch {torch.__version__} cannot use it"
        wishes[problem] = "install a CUDA build of torch that the driver is new enough for"
    use: dict[str, Any] = {}
    config = Config()
    try:
        device = pick_device(config)
        use = {
            "device": str(device),
            "dtype": dtype_name(pick_dtype(config, {}, device)),
            "attention": pick_attention(config, device, HEAD_DIM),
        }
    except Fault as fault:
        missing[fault.message] = fault.hint
    return {"gpus": gpus, "will_use": use | {"threads": probe().cores}}


def _gpus(wishes: Findings) -> Iterator[dict[str, Any]]:
    import torch

    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        major, minor = torch.cuda.get_device_capability(index)
        name = torch.cuda.get_device_name(index)
        yield {"index": index, "name": name, "capability": f"{major}.{minor}", "total": total, "free": free}
    if torch.cuda.is_available() and find_spec("triton") is None:
        wishes["there is a GPU and no triton, so our kernels for it cannot run"] = "pip install triton"


def _cache(wishes: Findings) -> dict[str, Any]:
    from headrace.base.home import home
    from headrace.checkpoint.hub import place

    folder, model = home(), Model().path
    there = place(model).is_file()
    if not there:
        wishes[f"the default model {model} is not here yet"] = f"headrace pull {model}, or just use it"
    return {"folder": str(folder), "size": _size(folder), "default_model": there}


def _size(folder: Path) -> int:
    """Bytes of all files in it that may be looked at and do not go meanwhile."""
    total = 0
    for at, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(at, name).stat().st_size
    return total


# -- for people -----------------------------------------------------------------------------------------------


def _show(report: dict[str, Any]) -> None:
    console = Console()
    console.print(_machine(report))
    for title, findings in (("missing", report["missing"]), ("could be better", report["better"])):
        if findings:
            rows = [(finding["problem"], finding["remedy"]) for finding in findings]
            console.print(table(("what", "what to do"), rows, words=(0, 1), title=title))
    if not report["missing"]:
        console.print("nothing that is needed is missing")


def _machine(report: dict[str, Any]) -> Table:
    cpu, cache, use = report["cpu"], report["cache"], report["will_use"]
    made = sheet(f"headrace {report['headrace']}", ((name, report[name]) for name in ("system", "python")))
    installed = [f"{name} {number or '-'}" for name, number in report["packages"].items()]
    made.add_row("packages", ", ".join(installed), end_section=True)
    made.add_row("CPU", cpu["name"])
    cores = f"{cpu['usable_cores']} usable of {cpu['cores']} (affinity {cpu['allowed_cores'] or '-'})"
    made.add_row("cores", cores)
    features = ", ".join(f"{flag} ({FLAGS[flag]})" for flag in cpu["flags"])
    made.add_row("CPU features", features or "none of note")
    made.add_row("memory", _free(report["memory"]))
    for gpu in report["gpus"]:
        said = f"{gpu['name']}, compute capability {gpu['capability']}, {_free(gpu)}"
        made.add_row(f"GPU {gpu['index']}", said)
    if not report["gpus"]:
        made.add_row("GPUs", "none that torch can use")
    made.add_row("cache", f"{cache['folder']}, {size(cache['size'])}", end_section=True)
    for name, value in use.items():
        made.add_row(f"will use: {name}", str(value))
    return made


def _free(memory: dict[str, Any]) -> str:
    return f"{size(memory['free'])} free of {size(memory['total'])}"

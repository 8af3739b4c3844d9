"""The table of devices: memory, speeds and a price for each. Edit it, or give a file of your own."""

import json
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from headrace.base.errors import Refused, UnknownName
from headrace.base.text_file import read_bytes

GIB, TERA, GIGA = 2**30, 1e12, 1e9
PRICES_OF = "2026-11"
"""When the prices below were written down. EDIT ME: they are what an hour on demand costs roughly, without a
contract, and differ by a factor of three from seller to seller. `--price` and `--gpus-file` say yours."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device. Speeds are the data sheet's, dense: what is reached of them, an efficiency table says."""

    name: str
    memory: float
    """Bytes that the driver reports as there."""
    bandwidth: float
    """Bytes per second of its memory."""
    bf16: float
    fp8: float = 0.0
    int8: float = 0.0
    fp4: float = 0.0
    """FLOP/s; 0: no units for it, the numbers are turned into bf16 first."""
    link: float = 32 * GIGA
    """Bytes per second, one direction, to other devices of the machine."""
    price: float = 0.0
    """US dollars per hour."""
    kind: str = "gpu"
    """gpu or cpu."""
    fp32: float = 0.0

    def speed(self, arithmetic: str) -> float:
        """FLOP/s for numbers of that kind, by way of the next that the device has."""
        own = {"fp32": self.fp32, "fp8": self.fp8, "int8": self.int8, "fp4": self.fp4}.get(arithmetic, 0.0)
        return own or (self.speed("fp8") if arithmetic == "fp4" else self.bf16)


def _gpu(
    name: str, gib: float, tbs: float, tera: tuple[float, float, float, float], link: float, price: float
) -> Gpu:
    """From units people know: GiB, TB/s, TFLOP/s of (bf16, fp8, int8, fp4), GB/s, dollars an hour."""
    bf16, fp8, int8, fp4 = (t * TERA for t in tera)
    return Gpu(name, gib * GIB, tbs * TERA, bf16, fp8, int8, fp4, link * GIGA, price)


# name, memory as the driver reports it, bandwidth, (bf16, fp8, int8, fp4), link, price
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("h100", 79.2, 3.35, (989, 1979, 1979, 0), 450, 2.80),
        replace(
            _gpu("h200", 139.8, 4.80, (989, 1979, 1979, 0), 450, 3.60), memory=150_109_880_320
        ),  # measured
        _gpu("b200", 178.4, 8.00, (2250, 4500, 4500, 9000), 900, 5.80),
        _gpu("a100-80gb", 79.2, 2.04, (312, 0, 624, 0), 300, 1.70),
        _gpu("a100-40gb", 39.4, 1.56, (312, 0, 624, 0), 300, 1.30),
        _gpu("l40s", 44.4, 0.864, (362, 733, 733, 0), 32, 0.90),
        _gpu("l4", 22.0, 0.300, (121, 242, 242, 0), 32, 0.70),
        _gpu("a10g", 22.0, 0.600, (70, 0, 140, 0), 32, 1.00),
        _gpu("mi300x", 191.9, 5.30, (1307, 2615, 2615, 0), 448, 2.50),
        _gpu("rtx-4090", 23.5, 1.008, (165, 330, 660, 0), 32, 0.45),
        _gpu("rtx-5090", 31.3, 1.792, (210, 419, 838, 1676), 64, 0.80),
        # 32 cores with AVX-512 and bf16 instructions, eight channels of memory; AMX is not counted
        Gpu("cpu", 256 * GIB, 0.300 * TERA, 10e12, 0, 20e12, 0, price=1.50, kind="cpu", fp32=5e12),
        # two cores of such a machine, shared with others, as measured: 11 GB/s
        Gpu("cpu-2core", 16 * GIB, 11 * GIGA, 0.34e12, 0, 0.68e12, 0, price=0.10, kind="cpu", fp32=0.17e12),
    )
}
ALIASES = {
    "a100": "a100-80gb", "a100-sxm4-80gb": "a100-80gb", "a100-40": "a100-40gb", "a100-80": "a100-80gb",
    "a100-sxm4-40gb": "a100-40gb", "4090": "rtx-4090", "5090": "rtx-5090", "rtx4090": "rtx-4090",
    "rtx5090": "rtx-5090", "h100-80gb-hbm3": "h100", "h100-sxm": "h100", "h200-sxm": "h200",
}  # fmt: skip
UNITS = {"memory": GIB, "bandwidth": GIGA, "link": GIGA} | dict.fromkeys(
    ("bf16", "fp8", "int8", "fp4", "fp32"), TERA
)
"""Of the numbers in a file: GiB, GB/s, TFLOP/s."""
LEAST, MOST = 1e-6, 1e9
"""Of those that are not 0."""


def gpu(name: str, known: dict[str, Gpu] | None = None) -> Gpu:
    """The device of that name, however it is written. Raises UnknownName with the nearest one."""
    table = GPUS if known is None else known
    plain = re.sub(r"[\s_]+", "-", name.strip().lower())
    plain = re.sub(r"^(nvidia|geforce|amd|instinct|tesla)-", "", plain).removeprefix("geforce-")
    for tried in (name, plain, ALIASES.get(plain, "")):
        if tried in table:
            return table[tried]
    raise UnknownName.among("GPU", name, list(table), param="gpu")


def read_table(path: Path) -> dict[str, Gpu]:
    """The table with the devices of a JSON file added, or changed where it has them already.

    The file: {"h100": {"price": 2.1}, "mine": {"memory": 48, "bandwidth": 864, "bf16": 362, "price": 0.5}}, in
    GiB, GB/s, TFLOP/s and dollars per hour. Raises Refused naming what is wrong with it.
    """
    raw = read_bytes(path, "gpus_file")
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError) as fault:
        raise Refused(f"{path} is not JSON: {fault}", param="gpus_file") from fault
    if not isinstance(said, dict) or not all(isinstance(row, dict) for row in said.values()):
        raise Refused(
            f"{path} is no table of devices", param="gpus_file", hint='as in {"h100": {"price": 2.1}}'
        )
    return GPUS | {name: _row(name, row, path) for name, row in said.items()}


def _row(name: str, row: dict[str, Any], path: Path) -> Gpu:
    columns = [column.name for column in fields(Gpu) if column.name != "name"]
    for column, value in row.items():
        if column not in columns:
            raise UnknownName.among(f"column of {path}", column, columns, param="gpus_file")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        likely = number and (value == 0 or LEAST <= value <= MOST)
        if not (value in ("gpu", "cpu") if column == "kind" else likely):
            raise Refused(f"{path}: {name}.{column} is {value!r}; expected a number", param="gpus_file")
    scaled = {column: v if column == "kind" else v * UNITS.get(column, 1) for column, v in row.items()}
    made = replace(GPUS.get(name, Gpu(name, 0, 0, 0)), **scaled)
    if lacking := [column for column in ("memory", "bandwidth", "bf16", "link") if not getattr(made, column)]:
        raise Refused(f"{path}: {name} lacks {', '.join(lacking)}", param="gpus_file")
    return made

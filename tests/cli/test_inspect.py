"""`headrace inspect`."""

import json
from pathlib import Path

from headrace.models.llama import TINY
from tests.cli.conftest import Command

SIZES = ("--memory.kv-blocks=80", "--schedule.rows=4", "--schedule.tokens=64")


def test_tables(command: Command, tiny: Path):
    code, out, err = command("inspect", str(tiny), *SIZES)
    assert (code, err) == (0, "")
    blocks = "KV cache, 80 blocks of 16 tokens"
    for said in ("llama", "float32", blocks, "256 (longest)", "3 layers that see all"):
        assert said in out
    assert str(tiny).replace("/", "")[-20:] in "".join(out.split()).replace("│", "").replace("/", "")


def test_json(command: Command, tiny: Path):
    code, out, _ = command("inspect", str(tiny), "--json", *SIZES)
    said = json.loads(out)
    assert code == 0
    memory, kv = said["memory"], said["kv"]
    assert (
        memory["left_over"]
        == memory["allowed"] - memory["weights"] - memory["workspace"] - memory["kv_cache"]
    )
    assert 0 <= memory["weights"] - said["parameters"] * 4 < 1 << 20  # the rope tables
    heads, layers = TINY["num_key_value_heads"], TINY["num_hidden_layers"]
    assert memory["kv_cache"] == 80 * 16 * layers * 2 * heads * TINY["head_dim"] * 4
    assert (kv["tokens"], kv["longest_request"]) == (80 * 16, 256)
    assert kv["layer_groups"] == [{"layers": 3, "window": None}]
    assert said["at_once"] == {"256": 4}


def test_windows_are_groups_of_their_own(command: Command, tmp_path: Path):
    config = TINY | {"model_type": "mistral", "sliding_window": 32, "max_position_embeddings": 4096}
    (tmp_path / "config.json").write_text(json.dumps(config))
    said = json.loads(
        command("inspect", str(tmp_path), "--json", "--memory.kv-blocks=400", "--schedule.tokens=64")[1]
    )
    assert said["kv"]["layer_groups"] == [{"layers": 3, "window": 32}]
    assert said["at_once"].keys() == {"512", "2048", "4096"}
    assert len(set(said["at_once"].values())) == 1  # a window holds no more of a longer request


def test_the_model_may_be_a_flag_but_not_both(command: Command, tiny: Path):
    assert command("inspect", "--model", str(tiny), "--json", *SIZES)[0] == 0
    code, _, err = command("inspect", str(tiny), "--model", "other")
    assert code == 2
    assert "two models are given" in err


def test_what_does_not_fit_is_refused(command: Command, tiny: Path):
    code, _, err = command("inspect", str(tiny), "--memory.kv-blocks", "1000000000")
    assert code == 2
    assert "memory.kv_blocks 1000000000 needs" in err

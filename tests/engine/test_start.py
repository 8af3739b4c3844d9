"""From a folder to a running engine: tokenizers, templates, recommended settings, and checkpoints that are damaged."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headrace.api.llm import LLM
from headrace.base.errors import BadCheckpoint, Fault, Refused, UnknownName
from headrace.checkpoint.export_gguf import export_gguf
from headrace.engine import script
from headrace.engine.request import SamplingParams
from headrace.engine.start import look, recommended, start
from headrace.kernels import int8
from headrace.models import gemma
from headrace.nn import prepacked
from headrace.text.template import ChatTemplate
from tests import tiny
from tests.checkpoint.files import LLAMA, write_gguf

GREEDY = SamplingParams(temperature=0, max_tokens=4)


@pytest.fixture
def copy(llama_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama_folder, tmp_path / "copy"))


def test_looking_loads_no_weights(copy: Path):
    (copy / "model.safetensors").unlink()
    found = look(tiny.config(copy))
    assert found.plan.kv_blocks == 80
    assert found.settings["vocab_size"] == 259


def test_everything_fits_together(llama_folder: Path):
    told = []
    started = start(tiny.config(llama_folder), lambda what, done: told.append(done))
    assert started.intake.eos_ids == {0, tiny.EOS}  # <|endoftext|> ends answers by its name
    assert (started.intake.max_len, started.intake.vocab) == (256, 259)
    assert started.defaults == SamplingParams()
    assert told[-1] == 1
    assert torch.get_num_threads() == 1


def test_layers_know_their_place(tmp_path: Path):
    started = start(tiny.config(tiny.folder(tmp_path / "g", gemma.TINY)))
    layers = started.engine.runner.model.attentions
    assert [(layer.group, layer.cache_index) for layer in layers] == [
        tuple(p) for p in started.plan.layout.places
    ]


def test_dummy_weights_need_no_checkpoint(copy: Path):
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    one, two = (LLM(config=tiny.config(copy, load_format="dummy", seed=n)) for n in (1, 2))
    assert one.intake.tokenizer is None
    (output,) = one.generate([5, 6], GREEDY, use_tqdm=False)
    assert (output.outputs[0].text, len(output.outputs[0].token_ids)) == ("", 4)
    assert two.generate([5, 6], GREEDY, use_tqdm=False)[0].outputs[0].token_ids != output.outputs[0].token_ids
    with pytest.raises(Refused, match="no tokenizer"):
        one.generate("text")
    with pytest.raises(Refused, match="no tokenizer"):
        one.chat([{"role": "user", "content": "x"}])


def test_a_missing_tokenizer_is_refused_where_weights_are_real(copy: Path, llama_folder: Path):
    (copy / "tokenizer.json").unlink()
    with pytest.raises(Refused):
        start(tiny.config(copy))
    assert start(tiny.config(copy, tokenizer=str(llama_folder))).intake.tokenizer is not None


@pytest.mark.parametrize("how", ["text", "file"])
def test_another_chat_template(llama_folder: Path, tmp_path: Path, how: str):
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    (tmp_path / "t.jinja").write_text(template)
    given = template if how == "text" else str(tmp_path / "t.jinja")
    llm = LLM(config=tiny.config(llama_folder, chat_template=given))
    assert llm.chat([{"role": "user", "content": "hi"}], GREEDY, use_tqdm=False)[0].prompt == "[hi]"


@pytest.mark.parametrize(
    ("given", "why"), [("/nowhere/t.jinja", "No such file"), ("/dev/zero", "it is a pipe or")]
)
def test_a_chat_template_that_is_no_file(llama_folder: Path, given: str, why: str):
    with pytest.raises(Refused, match=f"{given} cannot be read: {why}") as refused:
        start(tiny.config(llama_folder, chat_template=given))
    assert refused.value.param == "model.chat_template"


def test_what_the_makers_recommend(copy: Path):
    said = {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "eos_token_id": [2, 7],
        "min_p": None,
    }
    (copy / "generation_config.json").write_text(json.dumps(said))
    assert recommended(copy) == SamplingParams(temperature=0.6, top_p=0.95, top_k=20)
    assert start(tiny.config(copy)).intake.eos_ids == {2, 7}
    (copy / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": 0.6}))
    assert recommended(copy).temperature == 0
    assert recommended(copy / "model.safetensors") == SamplingParams()
    assert recommended(copy / "model.safetensors", "smollm2-135m").temperature == 0.2


def test_what_a_gguf_file_recommends(copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (copy / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_p": 3.0, "top_k": 20}))
    export_gguf(copy, tmp_path / "x.gguf")
    with caplog.at_level("WARNING", "headrace.engine.start"):
        found = start(tiny.config(tmp_path / "x.gguf")).defaults
    assert found == recommended(copy) == SamplingParams(temperature=0.6, top_k=20)
    assert "left out: top_p is 3.0" in caplog.text


# -- damaged and missing ---------------------------------------------------------------------------------------


def test_unknown_models():
    for name, said in (("smolm2-135m", "did you mean smollm2-135m"), ("/nowhere/at/all", "there is no file")):
        with pytest.raises(UnknownName) as caught:
            LLM(name)
        assert said in str(caught.value)


def cut(data: bytes, at: float) -> bytes:
    return data[: int(len(data) * at)]


def flipped(data: bytes, at: float) -> bytes:
    n = int(len(data) * at)
    return data[:n] + bytes([data[n] ^ 0xFF]) + data[n + 1 :]


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    sizes = {"attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64)}
    sizes |= {
        "ffn_gate": (96, 64),
        "ffn_up": (96, 64),
        "ffn_down": (64, 96),
        "attn_norm": (64,),
        "ffn_norm": (64,),
    }
    shapes = {f"blk.{i}.{name}.weight": shape for i in range(2) for name, shape in sizes.items()}
    shapes |= {"token_embd.weight": (260, 64), "output_norm.weight": (64,), "output.weight": (260, 64)}
    vocab = tiny.library().get_vocab()
    words = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [*sorted(vocab, key=vocab.__getitem__), "ab"],
        "tokenizer.ggml.token_type": [3] * 3 + [1] * 257,
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": tiny.EOS,
    }
    tensors = {name: random.standard_normal(shape, np.float32) * 0.1 for name, shape in shapes.items()}
    kinds = {name: "Q4_0" for name in tensors if "attn_q" in name or "ffn_up" in name}
    at = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return write_gguf(at, "llama", LLAMA | words, tensors, kinds)


def test_a_gguf_file_answers(gguf_file: Path):
    llm = LLM(config=tiny.config(gguf_file))
    (output,) = llm.generate("ab", GREEDY, use_tqdm=False)
    assert output.prompt_token_ids == [259]
    assert len(output.outputs[0].token_ids) == 4


@pytest.mark.parametrize("at", [0, 0.001, 0.01, 0.1, 0.3, 0.6, 0.9, 0.999])
def test_truncated_files(gguf_file: Path, llama_folder: Path, tmp_path: Path, at: float):
    damaged = tmp_path / "cut.gguf"
    damaged.write_bytes(cut(gguf_file.read_bytes(), at))
    with pytest.raises(BadCheckpoint):
        LLM(config=tiny.config(damaged))
    copy = Path(shutil.copytree(llama_folder, tmp_path / "copy"))
    (copy / "model.safetensors").write_bytes(cut((llama_folder / "model.safetensors").read_bytes(), at))
    with pytest.raises(BadCheckpoint):
        LLM(config=tiny.config(copy))


def starts_or_refuses(load: Callable[[], object]) -> bool:
    """Whether it was refused; any exception but a Fault is the test's failure."""
    try:
        load()
    except Fault as fault:
        return bool(fault.message)
    return False


def test_corrupt_files_start_or_are_refused(gguf_file: Path, llama_folder: Path, tmp_path: Path):
    """One byte turned over: in weights that is other weights, in headers a refusal."""
    data = gguf_file.read_bytes()
    refused = 0
    damaged = tmp_path / "bad.gguf"
    for n in range(60):
        damaged.write_bytes(flipped(data, n / 60 * 0.12 if n % 2 else n / 4000))
        refused += starts_or_refuses(lambda: LLM(config=tiny.config(damaged)))
    assert refused > 10
    copy = Path(shutil.copytree(llama_folder, tmp_path / "copy"))
    data = (copy / "model.safetensors").read_bytes()
    refused = 0
    for n in range(30):
        (copy / "model.safetensors").write_bytes(flipped(data, n / 30 * 0.02))
        refused += starts_or_refuses(lambda: LLM(config=tiny.config(copy)))
    assert refused > 10


def test_other_weights_than_the_configuration_says(copy: Path):
    said = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(said | {"num_hidden_layers": 4}))
    with pytest.raises(BadCheckpoint, match=r"model.layers.3"):
        start(tiny.config(copy))
    (copy / "config.json").write_text(json.dumps(said | {"intermediate_size": 81}))
    with pytest.raises(BadCheckpoint, match="has shape"):
        start(tiny.config(copy))


# -- bad requests, through the whole library -------------------------------------------------------------------


@pytest.fixture(scope="module")
def llm(llama_folder: Path) -> LLM:
    return LLM(config=tiny.config(llama_folder))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("temperature", float("nan")),
        ("temperature", -1),
        ("top_p", 0),
        ("n", 0),
    ],
)
def test_params_that_make_no_sense(field: str, value: float):
    with pytest.raises(Refused, match=field) as caught:
        SamplingParams(**{field: value})
    assert caught.value.param == field


@pytest.mark.parametrize("prompt", ["", [], "x" * 256, "x" * 100_000, [259], [-1]])
def test_prompts_that_cannot_be_served(llm: LLM, prompt):
    with pytest.raises(Refused) as caught:
        llm.generate([prompt], GREEDY)
    assert caught.value.param == "prompt"


def test_a_template_that_does_not_end(llama_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("headrace.text.tokenizer.ChatTemplate", partial(ChatTemplate, seconds=0.2))
    line = "{% for a in range(9999) %}"
    loop = line * 3 + "{% endfor %}" * 3
    llm = LLM(config=tiny.config(llama_folder, chat_template=loop))
    with pytest.raises(Refused, match="template"):
        llm.chat([{"role": "user", "content": "hi"}])


# -- 8-bit products --------------------------------------------------------------------------------------------


@pytest.mark.skipif(int8.missing() is not None, reason="no 8-bit products on this processor")
def test_a_quantized_file_stays_quantized(gguf_file: Path):
    """Unless a dtype is asked for, which stands for the file's own numbers."""
    auto, plain = LLM(config=tiny.config(gguf_file)), LLM(config=tiny.config(gguf_file, dtype="float32"))
    assert (auto.plan.quantization, plain.plan.quantization) == ("int8", "none")
    assert auto.plan.memory.weights < plain.plan.memory.weights
    with pytest.raises(Refused, match="float32"):
        LLM(config=tiny.config(gguf_file, dtype="bfloat16", quantization="int8"))


@pytest.mark.skipif(int8.missing() is not None, reason="no 8-bit products on this processor")
def test_eight_bits_have_no_company(llama_folder: Path):
    """Scales are each token's own: alone or together, the same bits."""
    llm = LLM(config=tiny.config(llama_folder, quantization="int8", deterministic=True))
    params = SamplingParams(temperature=0, max_tokens=6, logprobs=1, ignore_eos=True)
    prompts = [[5 + n] * (3 + 9 * n) for n in range(4)]
    together = llm.generate(prompts, params, use_tqdm=False)
    for prompt, output in zip(prompts, together, strict=True):
        (alone,) = llm.generate([prompt], params, use_tqdm=False)
        assert alone.outputs[0].logprobs == output.outputs[0].logprobs


def bits(at: Path, caplog: pytest.LogCaptureFixture, **more: Any) -> tuple[bool, int]:
    """Whether a server's engine, as it comes, keeps a request's bits; how many lines the log has about it."""
    caplog.clear()
    started = start(tiny.config(at, **{"quantization": "int8", **more}), resumes=True)
    model, runner = started.engine.runner.model, started.engine.runner
    flags = {module.deterministic for module in model.modules() if hasattr(module, "deterministic")}
    assert flags == {started.plan.deterministic}
    assert not started.plan.deterministic or runner.script is not None
    return started.plan.deterministic, sum("greedy text" in line for line in caplog.messages)


@pytest.mark.skipif(int8.missing() is not None, reason="no 8-bit products on this processor")
def test_a_server_keeps_bits_where_that_is_cheap(
    llama_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    assert bits(llama_folder, caplog) == (True, 0)
    assert bits(llama_folder, caplog, quantization="none") == (False, 0)
    assert bits(llama_folder, caplog, deterministic=False) == (False, 0)
    assert not start(tiny.config(llama_folder, quantization="int8")).plan.deterministic
    assert bits(tiny.folder(tmp_path / "g", gemma.TINY), caplog) == (False, 1)
    with monkeypatch.context() as machine:
        machine.setattr(script, "keeps", lambda *given: False)
        assert bits(llama_folder, caplog) == (False, 1)
    monkeypatch.setattr(prepacked, "place_is_free", lambda weight: False)
    assert bits(llama_folder, caplog) == (False, 1)

"""Writes a model as other engines read it: a folder with config.json and bfloat16 safetensors."""

from pathlib import Path

import torch

from headrace import models
from headrace.base.errors import Refused
from headrace.checkpoint.config import read_config
from headrace.checkpoint.load import load, open_source
from headrace.checkpoint.save import save
from headrace.optimize.output import ARCHITECTURES


def unpack(path: Path, folder: Path) -> Path:
    """The model of a .gguf file, its weights dequantized, in a new folder. Raises Refused for one we cannot name."""
    settings = read_config(path)
    kind = str(settings["model_type"])
    if kind not in ARCHITECTURES:
        raise Refused(f"{path} holds a {kind}, which other engines have no name for that is known here")
    with torch.device("meta"):
        model = models.build(settings, 16)
    model.allocate(torch.bfloat16, torch.device("cpu"))
    load(model, open_source(path))
    plain = {key: value for key, value in settings.items() if value is not None}
    save(folder, model.sources(), plain | {"architectures": [ARCHITECTURES[kind]], "dtype": "bfloat16"})
    return folder

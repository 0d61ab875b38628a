"""Tiny Hugging Face models with random weights, made by transformers."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

VOCAB_SIZE = 50
NUM_LAYERS = 4
# Two rotary frequencies at least, so that the base matters; grouped queries; a head size of its own.
_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
_OWN_SIZES: dict[str, dict[str, Any]] = {
    "gpt_neox": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}
    },
    "llama": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        "num_key_value_heads": 2,
        "head_dim": 12,
        "pad_token_id": 3,
    },
}


def make_model(architecture: str, *, dtype: torch.dtype = torch.float32, tied: bool = False) -> Any:
    """Return a model in which no parameter is trivially 0 or 1."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[architecture](**_SIZES, **_OWN_SIZES[architecture], tie_word_embeddings=tied)
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model.to(dtype)


def save_model(folder: Path, model: Any, *, files: str = "safetensors") -> Path:
    """Save a model with a tokenizer: one file, parts with an index (`parts`), or a `.bin` (`bin`)."""
    size = "20KB" if files == "parts" else "5GB"
    model.save_pretrained(folder, max_shard_size=size)
    if files == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(_as_of_old(model), folder / "pytorch_model.bin")
    (folder / "tokenizer.json").write_text(json.dumps({"model": "of nobody"}))
    return folder


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors in the safetensors files of a folder."""
    from safetensors.torch import load_file

    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def _as_of_old(model: Any) -> dict[str, torch.Tensor]:
    """Return weights and computed tensors as transformers stored them in a ``.bin``."""
    state = dict(model.state_dict())
    if model.config.model_type != "gpt_neox":
        return state | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)}
    size = model.config.max_position_embeddings
    head = state.pop("lm_head.weight")
    return state | {
        "embed_out.weight": head,
        "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, size, size, dtype=torch.bool).tril(),
        "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(2),
    }


def use_module_cache(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let transformers import the code of exported models from a folder of its own.

    A process keeps the package of the folder that was used before, in which the modules of another export are
    not found.
    """
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        patch.delitem(sys.modules, name)
    patch.setattr(sys, "path", list(sys.path))
    patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder))

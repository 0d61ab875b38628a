"""Logits of a Hugging Face folder, computed by transformers in float32."""

import json
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pipeline.conversion.hf_config import CONFIG_JSON
from pipeline.conversion.hf_model.modeling_megaponder import MegaPonderForCausalLM
from pipeline.conversion.hf_weights import HuggingFaceWeights
from pipeline.conversion.prompts import PREFILL_TOLERANCE, decoded_columns, prompt_size

# Names of the modules and tensors outside the layers, by architecture.
_NORMS = {"gpt_neox": "final_layer_norm", "llama": "norm"}
_LAYERS = {"gpt_neox": "gpt_neox.layers.{}.", "llama": "model.layers.{}."}
_EMBEDDINGS = {"gpt_neox": "gpt_neox.embed_in.weight", "llama": "model.embed_tokens.weight"}
_FINAL_NORMS = {"gpt_neox": "gpt_neox.final_layer_norm.", "llama": "model.norm."}
_HEADS = {"gpt_neox": "embed_out.weight", "llama": "lm_head.weight"}


@torch.no_grad()
def backbone_logits(weights: HuggingFaceWeights, tokens: Tensor) -> Tensor:
    """Run a backbone that transformers itself has, with one layer in memory at a time.

    The model is built from the folder's own config.json with a single layer, into which the weights of each
    layer are read in turn; embedding, layer, norm and head are those of transformers.

    Args:
        weights: in a folder with its config.json.
        tokens: [B, S].
    Returns:
        [B, S, V].
    """
    transformers.utils.logging.set_verbosity_error()
    values = json.loads((weights.folder / CONFIG_JSON).read_text(encoding="utf-8"))
    kind = values["model_type"]
    config = CONFIG_MAPPING[kind].from_dict(values)
    num_layers, config.num_hidden_layers = config.num_hidden_layers, 1
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    base = getattr(model, model.base_model_prefix)
    norm = getattr(base, _NORMS[kind])
    # The base model runs once per layer; its final norm must run only once.
    setattr(base, _NORMS[kind], nn.Identity())
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    embedding.weight.copy_(weights.read(_EMBEDDINGS[kind]))
    hidden = embedding(tokens)
    for index in range(num_layers):
        _fill(base.layers[0], weights, _LAYERS[kind].format(index))
        hidden = base(inputs_embeds=hidden, use_cache=False).last_hidden_state
    _fill(norm, weights, _FINAL_NORMS[kind])
    if not config.tie_word_embeddings:
        head.weight.copy_(weights.read(_HEADS[kind]))
    logits: Tensor = head(norm(hidden))
    return logits


def _fill(module: nn.Module, weights: HuggingFaceWeights, prefix: str) -> None:
    for name, parameter in module.named_parameters():
        parameter.copy_(weights.read(f"{prefix}{name}"))


@torch.no_grad()
def pondering_logits(folder: Path, tokens: Tensor) -> Tensor:
    """Run an exported pondering model with this program's own code; code in the folder is never executed.

    Args:
        folder: with config.json and weights.
        tokens: [B, S].
    Returns:
        As :func:`pipeline.conversion.native_logits.pondering_logits`.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    loaded = MegaPonderForCausalLM.from_pretrained(
        folder, dtype=torch.float32, prefill_tolerance=PREFILL_TOLERANCE
    )
    model = loaded.eval()
    logits = [model(tokens).logits]
    prefilled = model(tokens[:, : prompt_size(tokens)], use_cache=True, logits_to_keep=1)
    logits.append(prefilled.logits)
    for column in decoded_columns(tokens):
        decoded = model(tokens[:, column : column + 1], past_key_values=prefilled.past_key_values)
        logits.append(decoded.logits)
    return torch.cat(logits, dim=1)

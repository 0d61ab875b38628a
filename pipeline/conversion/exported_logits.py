"""Logits of an exported folder, computed by the code that is copied there, in float32."""

from pathlib import Path

import torch
import transformers
from torch import Tensor

from pipeline.conversion.hf_model.modeling_megaponder import MegaPonderForCausalLM
from pipeline.conversion.pondering_logits import SETTLED, decoded_columns, prompt_size


@torch.no_grad()
def exported_logits(folder: Path, tokens: Tensor) -> Tensor:
    """Run a folder; code that lies in it is not run, but this program's own.

    Args:
        folder: with config.json and weights.
        tokens: [B, S].
    Returns:
        As :func:`pipeline.conversion.pondering_logits.native_pondering_logits`.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    loaded = MegaPonderForCausalLM.from_pretrained(folder, dtype=torch.float32, prefill_tolerance=SETTLED)
    model = loaded.eval()
    logits = [model(tokens).logits]
    read = model(tokens[:, : prompt_size(tokens)], use_cache=True, logits_to_keep=1)
    logits.append(read.logits)
    for column in decoded_columns(tokens):
        decoded = model(tokens[:, column : column + 1], past_key_values=read.past_key_values)
        logits.append(decoded.logits)
    return torch.cat(logits, dim=1)

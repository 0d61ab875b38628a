"""The exported code decodes the recorded vectors, on their own weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.golden.case import GoldenCase, read_cases
from tests.support.golden.forward import ponder_config

pytest.importorskip("transformers")

BACKBONES = {"neox": "gpt_neox", "llama": "llama"}


# By golden names; the plain models are transformers' own.
METHODS = ["loop", "pause", "ponderlm", "ponderlm1", "ours", "adaponderlm", "ponderlm3"]


@pytest.fixture(scope="module")
def cases(golden_folder: Path) -> list[GoldenCase]:
    return read_cases(golden_folder)


def chosen(cases: list[GoldenCase], kind: str, method: str) -> list[GoldenCase]:
    """The cases of one golden method whose rows are one document each; there must be some."""
    found = [
        case
        for case in cases
        if case.kind == kind and case.facts["method"] == method and "inputs/document_ids" not in case.tensors
    ]
    assert found, f"the folder of golden vectors must hold a {kind} case of {method}"
    return found


def build(case: GoldenCase, dtype: torch.dtype) -> Any:
    """The exported code on the settings and weights of a case."""
    from pipeline.conversion.hf_model.configuration_megaponder import MegaPonderConfig
    from pipeline.conversion.hf_model.modeling_megaponder import MegaPonderForCausalLM

    backbone, ponder = case.backbone, ponder_config(case)
    is_neox, heads = case.facts["arch"] == "neox", case.backbone["num_attention_heads"]
    config = MegaPonderConfig(
        backbone=BACKBONES[case.facts["arch"]],
        **{
            name: backbone[name]
            for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
        },
        num_attention_heads=heads,
        num_key_value_heads=backbone.get("num_key_value_heads", heads),
        head_dim=backbone["hidden_size"] // heads,
        rotary_base=backbone["rotary_emb_base"] if is_neox else backbone["rope_theta"],
        rotary_percent=backbone["rotary_pct"] if is_neox else 1.0,
        norm_eps=backbone["layer_norm_eps" if is_neox else "rms_norm_eps"],
        tie_word_embeddings=backbone["tie_word_embeddings"],
        method=ponder.method.value,
        num_latent_thoughts=ponder.num_latent_thoughts,
        num_jacobi_iterations=int(case.facts["J"] or 0),
        scale_embeds=ponder.scale_embeds,
        mixture=ponder.mixture.value,
        softmax_temperature=ponder.softmax_temperature,
        residual=ponder.residual.value,
        multiply_embedding=ponder.multiply_embedding,
        pause_token_id=ponder.pause_token_id,
        pad_token_id=backbone["pad_token_id"],
        pruning_threshold=ponder.pruning_threshold,
        router=ponder.form.router.value,
        mask_in_training=ponder.form.mask_in_training.value,
        attention_scale_extra=ponder.form.attention_scale_extra,
        pre_pass=ponder.form.pre_pass,
        router_damping=ponder.form.router_damping,
        undamped_sweeps=ponder.form.undamped_sweeps,
        readout_from=ponder.form.readout_from.value,
        # PonderLM-2 was recorded after a number of sweeps, the others are exact.
        prefill_sweeps=case.facts["J"] if case.facts["method"] == "ours" else None,
        prefill_tolerance=0.0,
    )
    model = MegaPonderForCausalLM(config).to(dtype).eval()
    model.load_state_dict(case.weights())
    return model


def decode(case: GoldenCase, model: Any) -> tuple[Tensor, Tensor, Any]:
    """Greedy tokens, [B, T], the logits they were chosen from, [B, T, V], and the cache."""
    prompts = case.tensors["inputs/prompt_ids"]
    uses_cache = case.facts["use_cache"]
    tokens, cache, logits = prompts, None, []
    with torch.no_grad():
        for _ in range(case.facts["new_tokens"]):
            new = tokens if cache is None else tokens[:, -1:]
            output = model(new, past_key_values=cache, use_cache=uses_cache)
            cache = output.past_key_values
            logits.append(output.logits[:, -1])
            tokens = torch.cat([tokens, logits[-1].argmax(dim=-1, keepdim=True)], dim=1)
    return tokens[:, prompts.shape[1] :], torch.stack(logits, dim=1), cache


@pytest.mark.parametrize("method", ["ours", "adaponderlm", "ponderlm3"])
def test_the_exported_code_decodes_what_is_recorded(cases: list[GoldenCase], method: str) -> None:
    for case in chosen(cases, "decode", method):
        for dtype in (torch.float32, torch.float64):
            is_double = dtype == torch.float64
            name = "outputs_f64/step_logits" if is_double else "outputs/step_logits"
            tolerance = case.tolerance("outputs/step_logits", double=is_double)

            generated, logits, cache = decode(case, build(case, dtype))

            assert torch.equal(generated, case.tensors["outputs/generated_ids"]), case.name
            assert (logits - case.tensors[name]).abs().max() <= tolerance, case.name
            if "outputs/token_rows" in case.tensors:
                assert torch.equal(cache.steps + 1, case.tensors["outputs/token_rows"]), case.name


@pytest.mark.parametrize("method", METHODS)
def test_the_exported_forward_gives_the_recorded_logits(cases: list[GoldenCase], method: str) -> None:
    for case in chosen(cases, "forward", method):
        model, mask = build(case, torch.float32), case.tensors.get("inputs/attention_mask")
        with torch.no_grad():
            logits = model(case.tensors["inputs/input_ids"], attention_mask=mask).logits

        is_token = torch.ones_like(logits[..., 0]) if mask is None else mask
        error = (logits - case.tensors["outputs/logits"]).abs() * is_token.unsqueeze(-1)
        assert error.max() <= case.tolerance("outputs/logits", double=False), case.name

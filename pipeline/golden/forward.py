"""Compute what a forward case records, through the production model."""

from collections.abc import Mapping

import torch
from torch import Tensor

from megatron_ext.batch import TokenBatch
from megatron_ext.host import device
from megatron_ext.model import ModelOutput, PonderModel
from megatron_ext.model_config import (
    Architecture,
    Initialization,
    PonderTransformerConfig,
    architecture_settings,
    host_settings,
    initialization_settings,
)
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.parallel.vocabulary import IGNORED_LABEL
from megatron_ext.ponder.config import Method, Penalty, PonderConfig
from megatron_ext.ponder.masks import PADDING_DOCUMENT
from megatron_ext.ponder.penalties import halting_penalty
from megatron_ext.ponder.residual import residual
from megatron_ext.weights import load_weights, whole_tensors
from pipeline.config.vocabulary import padded_vocab_size
from pipeline.golden.case import GoldenCase
from pipeline.golden.compare import is_real, zero_padding

ARCHITECTURES = {"neox": Architecture.GPT_NEOX, "llama": Architecture.LLAMA}


def compute_forward(case: GoldenCase, groups: ParallelGroups, dtype: torch.dtype) -> dict[str, Tensor]:
    """Run a case and its backward pass.

    Args:
        case: of kind ``forward``.
        groups: the parallel layout; pipeline size 1.
        dtype: float32 or float64.
    Returns:
        Tensors under the names and in the layouts of the golden files (``outputs/...``, ``grads/...``).
    """
    model = PonderModel(model_config(case, groups, dtype), groups.pg_collection).to(device())
    load_weights(model, case.weights())
    batch = _batch(case)
    seen: dict[str, Tensor] = {}
    output = model(
        batch.to(device()),
        num_jacobi_iterations=int(case.facts["J"] or 0),
        observe=lambda name, value: seen.update({name: value.detach().clone()}),
    )
    loss = output.token_losses.sum() / (batch.labels != IGNORED_LABEL).sum()
    total = loss if output.penalty is None else loss + case.flags["penalty_lambda"] * output.penalty
    total.backward()
    values = _outputs(model, seen) | _losses(case, loss, total, output) | _halting(model, batch, seen, output)
    values = {name: zero_padding(name, value.cpu(), is_real(case)) for name, value in values.items()}
    return values | {name: value.cpu() for name, value in _gradients(model).items()}


def model_config(case: GoldenCase, groups: ParallelGroups, dtype: torch.dtype) -> PonderTransformerConfig:
    """The model of a case, on a layout and in a precision."""
    backbone, architecture = case.backbone, ARCHITECTURES[case.facts["arch"]]
    is_neox = architecture is Architecture.GPT_NEOX
    heads = backbone["num_attention_heads"]
    ponder = _ponder_config(case)
    return PonderTransformerConfig(
        architecture=architecture,
        ponder=ponder,
        vocab_size=backbone["vocab_size"],
        padded_vocab_size=padded_vocab_size(backbone["vocab_size"], divisible_by=1, tensor=groups.tp_size),
        rotary_percent=backbone["rotary_pct"] if is_neox else 1.0,
        rotary_base=backbone["rotary_emb_base"] if is_neox else backbone["rope_theta"],
        tie_embeddings=backbone["tie_word_embeddings"],
        padding_token_id=None if is_neox else backbone["pad_token_id"],
        num_layers=backbone["num_hidden_layers"],
        hidden_size=backbone["hidden_size"],
        ffn_hidden_size=backbone["intermediate_size"],
        num_attention_heads=heads,
        num_query_groups=backbone.get("num_key_value_heads", heads),
        layernorm_epsilon=backbone["layer_norm_eps" if is_neox else "rms_norm_eps"],
        tensor_model_parallel_size=groups.tp_size,
        params_dtype=dtype,
        **architecture_settings(architecture),
        **initialization_settings(
            Initialization.MEGATRON,
            vocab_size=backbone["vocab_size"],
            architecture=architecture,
            std=backbone["initializer_range"],
            hidden_size=backbone["hidden_size"],
            num_layers=backbone["num_hidden_layers"],
            num_slots=ponder.num_slots,
        ),
        **host_settings(),
    )


def _ponder_config(case: GoldenCase) -> PonderConfig:
    flags = case.flags
    return PonderConfig(
        method=case.method,
        num_latent_thoughts=0 if case.method is Method.VANILLA else case.facts["K"],
        max_jacobi_iterations=int(case.facts["J"] or 0),
        scale_embeds=flags.get("scale_embeds", True),
        interpolation=flags.get("interpolation", False),
        interpolation_topk=100 if flags.get("interpolation_use_topk") else None,
        pruning_threshold=flags.get("tau", 1e-4),
        penalty=Penalty(flags.get("penalty", Penalty.EXPECTED_STEPS)),
        bottom_k_fraction=flags.get("bottom_k_fraction", 0.25),
    )


def _batch(case: GoldenCase) -> TokenBatch:
    tokens = case.tensors["inputs/input_ids"]
    # Recorded labels stand at the position of the token itself; ours at the one before.
    labels = torch.full_like(tokens, IGNORED_LABEL)
    labels[:, :-1] = case.tensors["inputs/labels"][:, 1:]
    documents = case.tensors.get("inputs/document_ids", torch.zeros_like(tokens))
    return TokenBatch(
        tokens=tokens,
        labels=labels,
        position_ids=case.tensors.get("inputs/position_ids", torch.arange(tokens.shape[1]).expand_as(tokens)),
        document_ids=torch.where(is_real(case), documents, PADDING_DOCUMENT),
    )


def _outputs(model: PonderModel, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    outputs = {
        # [L, B, V / tp] -> [B, L, V]
        "outputs/logits": model.axis.gather_last_dim(seen["logits"]).transpose(0, 1)[
            ..., : model.config.vocab_size
        ],
        # [N, B, H] -> [B, N, H]
        "outputs/last_hidden": seen["last_hidden"].transpose(0, 1),
    }
    for name, value in seen.items():
        if name.startswith("thoughts/"):
            # [L, m, B, H] -> [m, B, L, H]
            outputs[f"outputs/{name}"] = value.permute(1, 2, 0, 3)
        elif name.startswith("log_w/"):
            # [L, n, B] -> [B, L, n]
            outputs[f"outputs/{name}"] = value.permute(2, 0, 1)
    return outputs


def _losses(case: GoldenCase, loss: Tensor, total: Tensor, output: ModelOutput) -> dict[str, Tensor]:
    losses = {"outputs/loss": loss.detach(), "outputs/total_loss": total.detach()}
    if output.penalty is not None:
        losses["outputs/penalty"] = output.penalty.detach()
    if "residual_change" in output.statistics:
        values = residual(output.statistics["residual_change"], output.statistics["residual_norm"])
        losses["outputs/residual"] = values[: int(case.facts["J"] or 0)]
    return losses


def _halting(
    model: PonderModel, batch: TokenBatch, seen: Mapping[str, Tensor], output: ModelOutput
) -> dict[str, Tensor]:
    if output.steps is None:
        return {}
    values = {
        # [L, B, ...] -> [B, L, ...]
        "outputs/router_logits": seen["router_logits"].transpose(0, 1),
        "outputs/mixed_hidden": seen["mixed_hidden"].transpose(0, 1),
        "outputs/steps": output.steps.transpose(0, 1),
        # [L, K + 1, B] -> [B, L, K + 1]
        "outputs/s": seen["s"].permute(2, 0, 1),
        "outputs/tail_mass": seen["tail_mass"].permute(2, 0, 1),
    }
    real = batch.is_real.transpose(0, 1).to(device())
    for kind in Penalty:
        values[f"outputs/penalty_{kind}"] = halting_penalty(
            seen["tail_mass"], real, kind, model.config.ponder.bottom_k_fraction
        )
    return values


def _gradients(model: PonderModel) -> dict[str, Tensor]:
    def gradient(parameter: torch.nn.Parameter) -> Tensor:
        return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad

    return {f"grads/{name}": value for name, value in whole_tensors(model, gradient).items()}

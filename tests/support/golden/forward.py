"""Outputs of a forward case, computed by the production model."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from megatron_ext.device import device
from megatron_ext.model.config import (
    Architecture,
    Initialization,
    PonderTransformerConfig,
    architecture_settings,
    host_settings,
    initialization_settings,
    pipeline_settings,
)
from megatron_ext.model.micro_batch import ForwardSettings, ModelOutput, TokenBatch
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.parallel.vocabulary import IGNORED_LABEL
from megatron_ext.ponder.config import Method, Mixture, Penalty, PonderConfig, Residual
from megatron_ext.ponder.halting import active_iterations, still_active
from megatron_ext.ponder.masks import PADDING_DOCUMENT
from megatron_ext.ponder.penalties import bottom_k, halting_penalty
from megatron_ext.ponder.residual import residual
from megatron_ext.schedule.gradients import finalize_gradients
from megatron_ext.schedule.pass_pipeline import run_passes
from megatron_ext.weights import load_weights, whole_tensors
from pipeline.config.rules_parallel import even_stages
from pipeline.config.schema import ParallelConfig, padded_vocab_size
from pipeline.step.build import wrap_model
from tests.support.golden.case import GoldenCase
from tests.support.golden.compare import is_real, zero_padding

ARCHITECTURES = {"neox": Architecture.GPT_NEOX, "llama": Architecture.LLAMA}


def compute_forward(case: GoldenCase, groups: ParallelGroups, dtype: torch.dtype) -> dict[str, Tensor]:
    """Run a case and its backward pass.

    Args:
        case: of kind ``forward``.
        groups: the parallel layout.
        dtype: float32 or float64.
    Returns:
        Tensors under the names and in the layouts of the golden files (``outputs/...``, ``grads/...``), on
        every rank.
    """
    model = PonderModel(model_config(case, groups, dtype), groups.pg_collection).to(device())
    load_weights(model, case.weights())
    values = _run(case, model, groups)
    values = {name: zero_padding(name, value.cpu(), is_real(case)) for name, value in values.items()}
    of_stages: list[dict[str, Tensor]] = [{} for _ in range(groups.pp_size)]
    torch.distributed.all_gather_object(of_stages, values, group=groups.pp)
    gradients = whole_tensors(model, lambda parameter: parameter.main_grad)  # type: ignore[attr-defined]
    values = {name: value for stage in of_stages for name, value in stage.items()}
    return values | {f"grads/{name}": value.cpu() for name, value in gradients.items()}


def _run(case: GoldenCase, model: PonderModel, groups: ParallelGroups) -> dict[str, Tensor]:
    """Run forward and backward through the training schedule; return the values of this pipeline stage."""
    ddp = wrap_model(model, ParallelConfig(use_distributed_optimizer=False))
    ddp.config.finalize_model_grads_func = finalize_gradients
    batch = _batch(case)
    seen: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}

    def loss_of(output: ModelOutput) -> Tensor:
        loss = output.token_losses.sum() / (batch.labels != IGNORED_LABEL).sum()
        total = loss if output.penalty is None else loss + case.flags["penalty_lambda"] * output.penalty
        values.update(_losses(case, loss, total, output) | _halting(model, batch, seen, output))
        return total

    run_passes(
        ddp,
        # A pipeline needs as many micro-batches as stages; the mean over copies of the case equals the case.
        [batch] * groups.pp_size,
        ForwardSettings(num_jacobi_iterations=int(case.facts["J"] or 0)),
        loss=loss_of,
        observe=lambda name, value: seen.update({name: _of_whole_rows(name, value.detach(), model)}),
    )
    if model.ponder.config.method is Method.PAUSE:
        values["outputs/expanded_input_ids"] = model.ponder.tokens_of_rows(batch.tokens)
    return values | _outputs(model, seen)


def model_config(case: GoldenCase, groups: ParallelGroups, dtype: torch.dtype) -> PonderTransformerConfig:
    """Build the model of a case on a parallel layout and in a precision."""
    backbone, architecture = case.backbone, ARCHITECTURES[case.facts["arch"]]
    is_neox = architecture is Architecture.GPT_NEOX
    heads = backbone["num_attention_heads"]
    ponder = ponder_config(case)
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
        pipeline_model_parallel_size=groups.pp_size,
        stage_layers=even_stages(backbone["num_hidden_layers"], groups.pp_size),
        params_dtype=dtype,
        **pipeline_settings(dtype),
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


def ponder_config(case: GoldenCase) -> PonderConfig:
    """Return the ponder configuration of a case."""
    flags, method = case.flags, case.method
    return PonderConfig(
        method=method,
        num_latent_thoughts=0 if method is Method.VANILLA else case.facts["K"],
        max_jacobi_iterations=max(
            int(case.facts["J"] or 0), case.facts.get("converged_jacobi_iterations", 0)
        ),
        pause_token_id=flags.get("pause_token_id") if method is Method.PAUSE else None,
        softmax_temperature=flags.get("softmax_temperature", 1.0),
        multiply_embedding=flags.get("mutiply_pondering_steps", False),
        pruning_threshold=flags.get("tau", 1e-4),
        penalty=Penalty(flags.get("penalty", Penalty.EXPECTED_STEPS)),
        bottom_k_fraction=flags.get("bottom_k_fraction", 0.25),
        bottom_k_floor=False,
        form=case.form,
        **_variant(case),
    )


def _variant(case: GoldenCase) -> dict[str, Any]:
    """Return the settings in which the recorded files differ from each other (definitions 2.2, 3.1, 4)."""
    name, is_neox = case.facts["method"], case.facts["arch"] == "neox"
    scales = {"scale_embeds": case.flags.get("scale_embeds", True)}
    if name == "ponderlm" and is_neox:
        return {"scale_embeds": False, "mixture": Mixture.HIDDEN}
    if name == "ponderlm":
        return scales | {"mixture": Mixture.SOFTMAX, "residual": Residual.FROM_EMBEDDING}
    if name in ("ponderlm1", "adaponderlm"):
        return scales | {"mixture": Mixture.SOFTMAX}
    if name == "loop" or (name == "pause" and not is_neox):
        return {"scale_embeds": True}
    if case.flags.get("interpolation"):
        topk = case.flags.get("interpolation_use_topk")
        return scales | {"mixture": Mixture.TOP_K if topk else Mixture.SOFTMAX}
    return scales


def _batch(case: GoldenCase) -> TokenBatch:
    tokens = case.tensors["inputs/input_ids"]
    # Recorded labels are at the position of the token itself, ours at the previous one.
    labels = torch.full_like(tokens, IGNORED_LABEL)
    labels[:, :-1] = case.tensors["inputs/labels"][:, 1:]
    documents = case.tensors.get("inputs/document_ids", torch.zeros_like(tokens))
    return TokenBatch(
        tokens=tokens,
        labels=labels,
        position_ids=case.tensors.get("inputs/position_ids", torch.arange(tokens.shape[1]).expand_as(tokens)),
        document_ids=torch.where(is_real(case), documents, PADDING_DOCUMENT),
    )


# What methods observe only after they have gathered all tokens.
_OF_ALL_TOKENS = ("s", "tail_mass", "gate_logits")


def _of_whole_rows(name: str, value: Tensor, model: PonderModel) -> Tensor:
    """Return a copy of an observed value of all tokens of the rows, whatever part of them this rank has."""
    if name in _OF_ALL_TOKENS:
        return value.clone()
    return model.context_axis.gather(value).clone()


# Recorded per token and pass, [L or N, B, H] here and [B, L or N, H] there.
_PER_TOKEN = ("last_hidden", "pass_inputs/", "stack_outputs/", "hidden/")


def _outputs(model: PonderModel, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    outputs = {}
    for name, value in seen.items():
        if name == "logits":
            # [L, B, V / tp] -> [B, L, V]
            logits = model.axis.gather_last_dim(value)[..., : model.config.vocab_size]
            outputs["outputs/logits"] = logits.transpose(0, 1)
        elif name.startswith(_PER_TOKEN):
            outputs[f"outputs/{name}"] = value.transpose(0, 1)
        elif name.startswith("thoughts/"):
            # [L, m, B, H] -> [m, B, L, H]
            outputs[f"outputs/{name}"] = value.permute(1, 2, 0, 3)
        elif name.startswith("log_w/"):
            # [L, n, B] -> [B, L, n]
            outputs[f"outputs/{name}"] = value.permute(2, 0, 1)
    return outputs


def _losses(case: GoldenCase, loss: Tensor, total: Tensor, output: ModelOutput) -> dict[str, Tensor]:
    # Copies: the schedule divides the loss in place.
    losses = {"outputs/loss": loss.detach().clone(), "outputs/total_loss": total.detach().clone()}
    if output.penalty is not None:
        losses["outputs/penalty"] = output.penalty.detach()
    if "residual_change" in output.statistics:
        values = residual(output.statistics["residual_change"], output.statistics["residual_norm"])
        losses["outputs/residual"] = values[: int(case.facts["J"] or 0)]
    return losses


def _halting(
    model: PonderModel, batch: TokenBatch, seen: Mapping[str, Tensor], output: ModelOutput
) -> dict[str, Tensor]:
    real = batch.is_real.transpose(0, 1).to(device())
    if "gate_logits" in seen:
        return _gating(seen["gate_logits"], real, model.config.ponder.pruning_threshold)
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
    for kind in (Penalty.EXPECTED_STEPS, Penalty.BOTTOM_K):
        values[f"outputs/penalty_{kind}"] = halting_penalty(
            seen["tail_mass"], real, kind, model.config.ponder.bottom_k_fraction
        )
    return values


def _gating(logits: Tensor, real: Tensor, threshold: float) -> dict[str, Tensor]:
    """Return the halting values that follow from the gate logits of AdaPonderLM, [L, B, K]."""
    masks = [torch.ones_like(logits[..., 0], dtype=torch.bool)]
    for index in range(logits.shape[-1]):
        masks.append(still_active(masks[-1], logits[..., index], threshold))
    return {
        "outputs/gate_logits": logits.transpose(0, 1),
        # [K + 1, L, B] -> [K + 1, B, L]
        "outputs/masks": torch.stack(masks).transpose(1, 2).long(),
        "outputs/active_iterations": active_iterations(logits, threshold).transpose(0, 1),
        "outputs/penalty_q1e-1": bottom_k(logits[real], 0.1),
        "outputs/penalty_q3e-1": bottom_k(logits[real], 0.3),
    }

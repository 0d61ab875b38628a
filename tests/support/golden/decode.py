"""Outputs of a decode case, computed by the production decoder.

Every recorded tensor is computed and compared. Float64 records exist of the step logits alone.

B = sequences, P = prompt tokens, T = new tokens, M = P + T - 1 tokens that are consumed, K = extra steps,
H = hidden size, V = vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from megatron_ext.decoding import BatchDecoder, DecodedTokens
from megatron_ext.device import device
from megatron_ext.model.micro_batch import TokenBatch
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.parallel.vocabulary import IGNORED_LABEL
from megatron_ext.ponder.config import Method
from megatron_ext.ponder.decode.sweeps import Sweeps
from megatron_ext.weights import load_weights
from tests.support.golden.case import GoldenCase
from tests.support.golden.forward import model_config
from tests.support.golden.trace import TokenTrace, halting_outputs, thought_outputs


def compute_decode(case: GoldenCase, groups: ParallelGroups, dtype: torch.dtype) -> dict[str, Tensor]:
    """Decode the prompts of a case greedily, and run a forward over the result.

    Args:
        case: of kind ``decode``.
        groups: a layout of one pipeline stage.
        dtype: float32 or float64.
    Returns:
        Tensors under the names and in the layouts of the golden files (``outputs/...``), on every rank.
    """
    model = PonderModel(model_config(case, groups, dtype), groups.pg_collection).to(device())
    load_weights(model, case.weights())
    model.eval()
    if not case.facts["use_cache"]:
        values = _decode_without_cache(case, model)
    elif case.method is Method.PONDERLM2:
        values = _decode_after_sweeps(case, model)
    else:
        values = _decode_token_by_token(case, model)
    values |= _parallel_logits(case, model, values["generated_ids"])
    return {f"outputs/{name}": value.cpu() for name, value in values.items()}


def _decode_without_cache(case: GoldenCase, model: PonderModel) -> dict[str, Tensor]:
    """Compute every token by a forward over all previous ones, as the published code for GPT-NeoX does."""
    tokens, step_logits = _prompts(case), []
    for _ in range(case.facts["new_tokens"]):
        step_logits.append(_forward_logits(model, tokens, num_jacobi_iterations=case.facts["J"])[:, -1])
        tokens = torch.cat([tokens, step_logits[-1].argmax(dim=-1, keepdim=True)], dim=1)
    return _steps(step_logits)


def _decode_after_sweeps(case: GoldenCase, model: PonderModel) -> dict[str, Tensor]:
    """Read a prompt by J sweeps, store the last pass, then decode token by token, as published."""
    prompts, num_new = _prompts(case).tolist(), case.facts["new_tokens"]
    decoder = _decoder(case, model)
    prompt_slots: dict[str, Tensor] = {}
    decoder.observe = prompt_slots.__setitem__
    read = decoder.read_prompts(range(len(prompts)), prompts, sweeps=Sweeps(number=case.facts["J"]))
    step_logits = [torch.stack([prompt.logits for prompt in read])]
    traces = []
    while len(step_logits) < num_new:
        decoded, trace = _consume(decoder, step_logits[-1].argmax(dim=-1).tolist())
        step_logits.append(decoded.logits)
        traces.append(trace)
    # [B * P, K + 1, H] -> [B, P, K + 1, H]
    inputs, hidden = (
        prompt_slots[f"prompt_slots/{name}"].unflatten(0, (len(prompts), -1)) for name in ("inputs", "hidden")
    )
    return (
        _steps(step_logits)
        | thought_outputs(traces)
        | {
            "prefill_thoughts": inputs[:, :, 1:].permute(2, 0, 1, 3),
            "prefill_last_hidden": hidden.flatten(1, 2),
        }
    )


def _decode_token_by_token(case: GoldenCase, model: PonderModel) -> dict[str, Tensor]:
    """Decode prompt and new tokens one by one; each takes only the steps it needs."""
    prompts, num_new = _prompts(case), case.facts["new_tokens"]
    decoder = _decoder(case, model)
    traces, logits = [], []
    for column in prompts.T.tolist():
        decoded, trace = _consume(decoder, column)
        traces.append(trace)
    logits.append(decoded.logits)
    while len(logits) < num_new:
        decoded, trace = _consume(decoder, logits[-1].argmax(dim=-1).tolist())
        logits.append(decoded.logits)
        traces.append(trace)
    return _steps(logits) | halting_outputs(case.method, traces)


def _consume(decoder: BatchDecoder, tokens: list[int]) -> tuple[DecodedTokens, TokenTrace]:
    trace = TokenTrace()
    decoder.observe = trace.observe
    decoded = decoder.consume(range(len(tokens)), tokens)
    trace.steps, trace.rows_kept = decoded.steps, torch.tensor(decoder.store.num_rows)
    return decoded, trace


def _decoder(case: GoldenCase, model: PonderModel) -> BatchDecoder:
    num_sequences, prompt_length = _prompts(case).shape
    return BatchDecoder(
        model, num_sequences=num_sequences, max_tokens=prompt_length + case.facts["new_tokens"] - 1
    )


def _prompts(case: GoldenCase) -> Tensor:
    return case.tensors["inputs/prompt_ids"].to(device())


def _steps(step_logits: list[Tensor]) -> dict[str, Tensor]:
    """Return the outputs that every case records from T logits of [B, V]."""
    logits = torch.stack(step_logits, dim=1)
    return {"step_logits": logits, "generated_ids": logits.argmax(dim=-1)}


def _parallel_logits(case: GoldenCase, model: PonderModel, generated: Tensor) -> dict[str, Tensor]:
    """Run the forwards over prompt and generated tokens that the case records."""
    tokens = torch.cat([_prompts(case), generated], dim=1)
    sweeps, converged = int(case.facts["J"] or 0), case.facts.get("converged_jacobi_iterations", 0)
    ways: dict[str, Callable[[], Tensor]] = {
        "parallel_logits": lambda: _forward_logits(model, tokens, num_jacobi_iterations=sweeps),
        "parallel_logits_soft": lambda: _forward_logits(model, tokens, num_jacobi_iterations=sweeps),
        "parallel_logits_converged": lambda: _forward_logits(model, tokens, num_jacobi_iterations=converged),
        "parallel_logits_soft_converged": lambda: _forward_logits(
            model, tokens, num_jacobi_iterations=converged, damped=False
        ),
        "parallel_logits_hard_converged": lambda: _forward_logits(
            model, tokens, num_jacobi_iterations=converged, damped=False, prune=True
        ),
    }
    return {name: compute() for name, compute in ways.items() if f"outputs/{name}" in case.tensors}


@torch.no_grad()
def _forward_logits(
    model: PonderModel,
    tokens: Tensor,
    *,
    num_jacobi_iterations: int,
    prune: bool = False,
    damped: bool = True,
) -> Tensor:
    """[B, S] -> [B, S, V]."""
    seen: dict[str, Tensor] = {}

    def keep_logits(name: str, value: Tensor) -> None:
        if name == "logits":
            # The loss works on them in place.
            seen[name] = value.clone()

    batch = TokenBatch(
        tokens=tokens,
        labels=torch.full_like(tokens, IGNORED_LABEL),
        position_ids=torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens),
        document_ids=torch.zeros_like(tokens),
    )
    model(
        batch,
        num_jacobi_iterations=num_jacobi_iterations,
        prune=prune,
        damped=damped,
        observe=keep_logits,
    )
    # [S, B, V / tp] -> [B, S, V]
    return model.axis.gather_last_dim(seen["logits"])[..., : model.config.vocab_size].transpose(0, 1)

"""Checkpoints of tiny pondering models, and what this program computes from them in float64."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_ext.decoding import BatchDecoder
from megatron_ext.model.config import Architecture
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import destroy_groups, initialize_groups
from megatron_ext.ponder.config import Method, Reading, RouterForm
from megatron_ext.ponder.decode.sweeps import Sweeps
from megatron_ext.weights import load_weights, whole_tensors
from pipeline.checkpoint.folder import publish, start_partial_checkpoint
from pipeline.config.load import build_config
from pipeline.config.schema import RunConfig
from pipeline.conversion.native import NativeWriter, write_small_files
from tests.support.ponder_models import (
    VOCAB_SIZE,
    batch_of,
    mean_loss,
    observed,
    random_tokens,
    tiny_model,
)

NUM_THOUGHTS, NUM_SWEEPS, NUM_NEW = 3, 2, 8
PROMPT_LENGTHS = (7, 1, 9, 4)
SETTLED = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The results of our own model in float64.

    Attributes:
        forward: logits of the forward of training over `forward_tokens`, [B, S, V].
        steps: extra steps of these tokens, [B, S], where the method counts them.
        loss: mean cross-entropy of its next tokens.
        gradients: of that loss, by Hugging Face name.
        prompt_steps: extra steps of the tokens of each prompt.
        continuations: greedy tokens behind each prompt, [prompts, NUM_NEW].
        step_logits: which they were chosen from, [prompts, NUM_NEW, V].
        new_steps: extra steps of all new tokens but the last, [prompts, NUM_NEW - 1].
        num_rows: rows that decoding keeps of each sequence.
    """

    forward: Tensor
    steps: Tensor | None
    loss: Tensor
    gradients: dict[str, Tensor]
    prompt_steps: list[list[int]]
    continuations: Tensor
    step_logits: Tensor
    new_steps: Tensor
    num_rows: list[int]


def forward_tokens() -> Tensor:
    """Return token ids, [2, 9]."""
    return random_tokens(2, 9, seed=26)


def some_prompts() -> list[list[int]]:
    """Return prompts of different lengths whose tokens halt at every step."""
    return [random_tokens(1, length, seed=26 + length)[0].tolist() for length in PROMPT_LENGTHS]


def write_checkpoint(
    directory: Path,
    method: Method,
    architecture: Architecture,
    tied: bool,
    form: RouterForm | None = None,
    reading: Reading = Reading.MIXTURE,
) -> tuple[Path, Expected]:
    """Write a checkpoint of a model with random weights, on a process group of one rank.

    Returns:
        Its ``iter_`` folder, and what is to come out of it.
    """
    groups = initialize_groups()
    ponder: dict[str, Any] = {"reading": reading} | ({} if form is None else {"form": form})
    try:
        model = tiny_model(
            groups,
            method,
            architecture,
            num_latent_thoughts=NUM_THOUGHTS,
            dtype=torch.float32,
            tie_embeddings=tied,
            ponder=ponder,
        )
        folder = _write(directory, model, _run_config(model))
        exact = tiny_model(
            groups,
            method,
            architecture,
            num_latent_thoughts=NUM_THOUGHTS,
            tie_embeddings=tied,
            ponder=ponder,
        )
        weights = whole_tensors(model, lambda parameter: parameter)
        load_weights(exact, {name: value.double() for name, value in weights.items()})
        return folder, _expected(exact)
    finally:
        destroy_groups()


def _run_config(model: PonderModel) -> RunConfig:
    config, ponder = model.config, model.config.ponder
    settings: dict[str, Any] = {
        "name": "tiny",
        "model": {
            "architecture": config.architecture.value,
            "num_layers": config.num_layers,
            "hidden_size": config.hidden_size,
            "ffn_hidden_size": config.ffn_hidden_size,
            "num_attention_heads": config.num_attention_heads,
            "num_query_groups": config.num_query_groups,
            "vocab_size": config.vocab_size,
            "make_vocab_size_divisible_by": 16,
            "max_position_embeddings": 64,
            "rotary_percent": config.rotary_percent,
            "untie_embeddings_and_output_weights": not config.tie_embeddings,
        },
        "ponder": {"method": ponder.method.value, "num_latent_thoughts": ponder.num_latent_thoughts},
        "training": {"seq_length": 16, "micro_batch_size": 1, "global_batch_size": 1, "train_iters": 1},
        "optimizer": {"lr": 1e-3},
        "data": {"path": "somewhere/tiny-shakespeare"},
    }
    if ponder.method.halts:
        settings["ponder"]["pruning_threshold"] = ponder.pruning_threshold
    if ponder.method.facts.weighs_slots:
        settings["ponder"] |= asdict(ponder.form) | {"reading": ponder.reading.value}
    if ponder.method.has_sweeps:
        settings["ponder"]["num_jacobi_iterations"] = NUM_SWEEPS
    return build_config(settings)


def _write(directory: Path, model: PonderModel, config: RunConfig) -> Path:
    partial = start_partial_checkpoint(directory, 0)
    parameters = dict(model.named_parameters())
    num_bytes = sum(parameter.nbytes for parameter in parameters.values())
    with NativeWriter(partial, num_layers=model.config.num_layers, total_bytes=num_bytes) as writer:
        for name, parameter in parameters.items():
            writer.write(name, parameter.detach())
    write_small_files(partial, config)
    return publish(partial)


def _expected(model: PonderModel) -> Expected:
    batch = batch_of(forward_tokens())
    output, seen = observed(model, batch, num_jacobi_iterations=NUM_SWEEPS)
    loss = mean_loss(output, batch)
    loss.backward()
    gradients = whole_tensors(
        model, lambda value: torch.zeros_like(value) if value.grad is None else value.grad
    )
    decoded = _decode(model)
    return Expected(
        forward=seen["logits"].transpose(0, 1)[..., :VOCAB_SIZE],
        steps=None if output.steps is None else output.steps.transpose(0, 1),
        loss=loss.detach(),
        gradients=gradients,
        **decoded,
    )


@torch.no_grad()
def _decode(model: PonderModel) -> dict[str, Any]:
    prompts = some_prompts()
    everyone = range(len(prompts))
    decoder = BatchDecoder(model, num_sequences=len(prompts), max_tokens=max(map(len, prompts)) + NUM_NEW)
    read = decoder.read_prompts(everyone, prompts, sweeps=Sweeps(tolerance=SETTLED))
    logits, steps = [torch.stack([prompt.logits for prompt in read])], []
    for _ in range(NUM_NEW - 1):
        decoded = decoder.consume(everyone, logits[-1].argmax(dim=-1).tolist())
        logits.append(decoded.logits)
        steps.append(decoded.steps)
    step_logits = torch.stack(logits, dim=1)
    return {
        "prompt_steps": [prompt.steps.tolist() for prompt in read],
        "continuations": step_logits.argmax(dim=-1),
        "step_logits": step_logits,
        "new_steps": torch.stack(steps, dim=1),
        "num_rows": list(decoder.store.num_rows),
    }

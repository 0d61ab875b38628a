"""The time of a decoded token of a PonderLM-3 at 410M with random weights."""

import time
from typing import Any

import torch

from megatron_ext.decoding import BatchDecoder
from megatron_ext.device import synchronize
from megatron_ext.model.model import PonderModel
from megatron_ext.ponder.decode.sweeps import Sweeps
from pipeline.step.build import build_module
from scripts.gpu_check.one_rank import kernels_of, one_rank, recipe, vocab_size
from scripts.gpu_check.place import Findings, Place


def run(place: Place) -> Findings:
    """Decode for one text and for eight; texts decoded together must get the numbers they get alone."""
    found = Findings()
    config = recipe(place, "llama_410m_ponderlm3")
    prompt_tokens, new_tokens = place.choose((64, 24), (4, 2))
    generator = torch.Generator().manual_seed(1)
    shape = (8, prompt_tokens + new_tokens)
    tokens = torch.randint(vocab_size(config), shape, generator=generator)
    with one_rank() as groups, torch.inference_mode():
        model = build_module(config, vocab_size(config), groups).eval()
        logits = {}
        for number in (1, 8):
            figures, logits[number] = _decode(model, tokens[:number], prompt_tokens)
            found.figures[f"{number} texts"] = figures
        found.figures["kernels"] = kernels_of(lambda: _decode(model, tokens[:1], prompt_tokens), most=10)
    alone, together = logits[1][0], logits[8][0]
    gap = float((alone - together).abs().max() / alone.abs().max())
    found.figures["distance_from_alone"] = gap
    found.expect(bool(torch.isfinite(logits[8]).all()), "logits are not finite")
    found.expect(gap < 0.05, f"a text decoded with others is {gap:.3g} from itself alone")
    times = ", ".join(
        f"{name} {found.figures[name]['ms_per_token']:.1f} ms" for name in ("1 texts", "8 texts")
    )
    found.summary = f"a token of each of {times}; steps {found.figures['8 texts']['mean_steps']:.2f}"
    return found


def _decode(
    model: PonderModel, tokens: torch.Tensor, prompt_tokens: int
) -> tuple[dict[str, Any], torch.Tensor]:
    """Read prompts, then time the tokens after them; return figures, and the last logits, [B, V]."""
    sequences = list(range(len(tokens)))
    decoder = BatchDecoder(model, num_sequences=len(tokens), max_tokens=tokens.shape[1])
    decoder.read_prompts(sequences, tokens[:, :prompt_tokens].tolist(), sweeps=Sweeps(number=0))
    columns = tokens[:, prompt_tokens:].T.tolist()
    # The first one prepares kernels.
    steps = [decoder.consume(sequences, columns[0])]
    synchronize()
    started = time.perf_counter()
    steps += [decoder.consume(sequences, column) for column in columns[1:]]
    synchronize()
    seconds = (time.perf_counter() - started) / (len(columns) - 1)
    mean_steps = float(torch.cat([decoded.steps for decoded in steps[1:]]).double().mean())
    return {"ms_per_token": 1e3 * seconds, "mean_steps": mean_steps}, steps[-1].logits.float()

"""Time of decoding a few held-out tokens, next to the operations that they take.

Texts are given token by token (teacher forcing), so that steps and cost are those of real text, and all ways
to decode take turns, so that a drift of the machine's speed affects them alike.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median, quantiles

import numpy as np
import torch

from megatron_ext.decoding import BatchDecoder
from megatron_ext.device import device, synchronize
from megatron_ext.ponder.decode.sweeps import Sweeps
from megatron_ext.ponder.step_limits import StepLimits
from pipeline.cost.account import flops_account
from pipeline.cost.flops import FlopsAccount
from pipeline.data.order import SampleOrder
from pipeline.evaluation.opened import OpenedCheckpoint
from pipeline.metrics.records import DecodingSpeed

BATCH_SIZES = (1, 8)
# A single round of such short texts says little: in a few tenths of a second a neighbour can double its time.
PROMPT_TOKENS, TIMED_TOKENS, NUM_ROUNDS = 16, 16, 9
# Rounds after the first end when one batch size has taken so long.
MOST_SECONDS = 20.0
# FLOPs that differ by less are not worth a ratio.
SMALLEST_SAVING = 0.005


def decoding_speeds(
    checkpoint: OpenedCheckpoint,
    ways: Sequence[StepLimits],
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    num_tokens: int = PROMPT_TOKENS + TIMED_TOKENS,
    clock: Callable[[], float] = time.perf_counter,
) -> list[tuple[DecodingSpeed, ...]]:
    """Time decoding under some limits; all ranks call it together, each replica times itself.

    Args:
        checkpoint: the model.
        ways: limits to decode under; they are compared with all steps of the trained model.
        batch_sizes: texts that are decoded together.
        num_tokens: of each text, if they are so long; the second half is timed.
        clock: in seconds; on a busy CPU the time of the process tells more than that of the wall.
    Returns:
        For each way its speeds by batch size.
    """
    account = flops_account(checkpoint.config, checkpoint.module.config.vocab_size)
    distinct = list(dict.fromkeys([_all_steps(checkpoint), *ways]))
    speeds: dict[StepLimits, list[DecodingSpeed]] = {limits: [] for limits in distinct}
    for batch_size in batch_sizes:
        tokens = heldout_tokens(checkpoint, batch_size, num_tokens=num_tokens)
        timed = [_Way(limits, account) for limits in distinct]
        _take_turns(checkpoint, timed, tokens, clock)
        for way in timed:
            speeds[way.limits].append(_speed(way, timed[0], tokens))
    return [tuple(speeds[limits]) for limits in ways]


def heldout_tokens(
    checkpoint: OpenedCheckpoint, batch_size: int, *, num_tokens: int = PROMPT_TOKENS + TIMED_TOKENS
) -> list[list[int]]:
    """Return the beginnings of random held-out rows, equally long; the same ones every time."""
    heldout = checkpoint.heldout
    length = min(num_tokens, checkpoint.config.training.seq_length)
    order = SampleOrder(num_samples=len(heldout), seed=0, shuffled=True)
    rows = heldout.rows([int(index) for index in order.indices(0, batch_size)])
    length = min(length, int(rows.lengths.min()))
    texts: list[list[int]] = rows.tokens[:, :length].astype(np.int64).tolist()
    return texts


def _all_steps(checkpoint: OpenedCheckpoint) -> StepLimits:
    return StepLimits(threshold=0.0 if checkpoint.config.ponder.method.halts else None)


@dataclass(slots=True)
class _Way:
    """A way to decode, with the times of its rounds."""

    limits: StepLimits
    account: FlopsAccount
    seconds: list[float] = field(default_factory=list)
    mean_steps: float = 0.0
    shares: tuple[float, ...] = ()

    def flops_per_token(self, tokens_before: float) -> float:
        limits = self.limits
        account = replace(self.account, signal=limits.signal)
        if limits.num_steps is not None:
            account = account.limited_to(limits.num_steps)
        return account.inference_flops(self.mean_steps, shares=self.shares, tokens_before=tokens_before).model


def _take_turns(
    checkpoint: OpenedCheckpoint,
    ways: Sequence[_Way],
    tokens: Sequence[Sequence[int]],
    clock: Callable[[], float],
) -> None:
    started = time.monotonic()
    for turn in range(NUM_ROUNDS + 1):
        for way in (*ways[turn % len(ways) :], *ways[: turn % len(ways)]):
            _decode(checkpoint, way, tokens, clock, is_timed=turn > 0)
        # The first rank's clock decides for all: ranks that disagreed would wait for each other.
        if turn > 0 and _agreed(time.monotonic() - started > MOST_SECONDS):
            return


def _decode(
    checkpoint: OpenedCheckpoint,
    way: _Way,
    tokens: Sequence[Sequence[int]],
    clock: Callable[[], float],
    *,
    is_timed: bool,
) -> None:
    """Read the first half of the texts, then time the rest."""
    num_prompt = len(tokens[0]) // 2
    decoder = BatchDecoder(
        checkpoint.module, num_sequences=len(tokens), max_tokens=len(tokens[0]), limits=way.limits
    )
    texts = range(len(tokens))
    decoder.read_prompts(texts, [text[:num_prompt] for text in tokens], sweeps=Sweeps(number=1))
    rest = [text[num_prompt:] for text in tokens]
    synchronize()
    started = clock()
    taken = [decoded.steps for decoded in decoder.follow(texts, rest)]
    synchronize()
    seconds = clock() - started
    if is_timed:
        way.seconds.append(seconds / len(rest[0]))
    steps = torch.cat(taken)
    way.mean_steps = float(steps.double().mean())
    num_steps = way.account.num_latent_thoughts if way.limits.num_steps is None else way.limits.num_steps
    way.shares = tuple((steps.flatten().bincount(minlength=num_steps + 1) / steps.numel()).tolist())


def _speed(way: _Way, whole: _Way, tokens: Sequence[Sequence[int]]) -> DecodingSpeed:
    num_prompt = len(tokens[0]) // 2
    before = (num_prompt + len(tokens[0]) - 1) / 2
    seconds, flops = median(way.seconds), way.flops_per_token(before)
    saved = 1 - flops / whole.flops_per_token(before)
    gains = _gains(way, whole, saved) if saved >= SMALLEST_SAVING else []
    return DecodingSpeed(
        batch_size=len(tokens),
        milliseconds_per_token=1000 * seconds,
        tokens_per_second=len(tokens) / seconds,
        mean_steps=way.mean_steps,
        flops_per_token=flops,
        gain_reached=median(gains) if gains else None,
        gain_range=_quartiles(gains) if len(gains) > 1 else None,
    )


def _gains(way: _Way, whole: _Way, saved: float) -> list[float]:
    """Return, for each round, the share of the FLOPs saved that was saved in time."""
    return [
        (1 - limited / unlimited) / saved
        for limited, unlimited in zip(way.seconds, whole.seconds, strict=True)
    ]


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    lower, _, upper = quantiles(values, n=4, method="inclusive")
    return lower, upper


def _agreed(is_late: bool) -> bool:
    decision = torch.tensor([int(is_late)], device=device())
    torch.distributed.broadcast(decision, src=0)
    return bool(decision.item())

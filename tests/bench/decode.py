"""Time of a decoded token by the steps it takes, relative to vanilla decoding, with the FLOPs of each.

The router of a PonderLM-3 with random weights is biased, so that every token takes exactly 0, 1, .. K steps,
or as many as random router weights decide. Prompts are read before the clock starts. All ways take turns, so
that a drift of the machine's speed affects them equally.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Protocol

import torch
from torch import nn

from megatron_ext.decoding import BatchDecoder
from megatron_ext.device import device
from megatron_ext.host import prepare_host
from megatron_ext.methods.ponderlm3 import PonderLM3
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from megatron_ext.ponder.config import Method, PonderConfig
from megatron_ext.ponder.decode.sweeps import Sweeps
from pipeline.config.schema import RunConfig
from pipeline.cost.account import flops_account
from pipeline.ranks.distributed import start_process_group, stop_process_group
from pipeline.ranks.environment import Ranks
from pipeline.step.megatron_config import transformer_config
from tests.bench.random_batches import DEFAULT_VOCAB_SIZE

# Odds of exp(50): every other step has a tail mass far below any threshold.
CERTAIN = 50.0
# Router logits of several units: the decision is clear for most tokens, and differs between tokens.
DIVERSE = 6.0
VANILLA, UNPRUNED, MIXED = "vanilla", "without pruning", "steps differ by token"
ONE_STEP = "1 steps"
TIMEOUT_SECONDS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSizes:
    """Number of sequences, tokens of each prompt, and timed tokens after it."""

    batch_size: int
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeTime:
    """Cost of one way to decode.

    Attributes:
        name: of the way.
        mean_steps: extra steps of the timed tokens.
        seconds_per_token: for one token of each sequence, median over the rounds.
        seconds_of_rounds: the same of every round.
        flops_per_token: for one token of one sequence in the middle of the timed ones, computed from the
            shape of the model.
    """

    name: str
    mean_steps: float
    seconds_per_token: float
    seconds_of_rounds: tuple[float, ...]
    flops_per_token: float


class Way(Protocol):
    """A way to decode, with the times of its rounds."""

    name: str
    seconds: list[float]
    steps: list[float]

    def run(self, *, is_timed: bool) -> None:
        """Decode once."""


def time_decoding(
    config: RunConfig,
    sizes: DecodeSizes,
    *,
    repeats: int,
    further: Callable[[], Sequence[Way]] = tuple,
    advance: Callable[[], None] = lambda: None,
) -> list[DecodeTime]:
    """Time all ways in turns, on one rank and random tokens.

    Args:
        config: a PonderLM-3.
        sizes: what is decoded.
        repeats: timed rounds, after one untimed round.
        further: builds other ways to decode without thoughts, which take their turns too.
        advance: called after every round.
    Returns:
        Times without pruning, with 0..K steps, with steps that differ by token, of vanilla, of ``further``.
    """
    assert config.ponder.method is Method.PONDERLM3, "steps are controlled by the router of PonderLM-3"
    prepare_host()
    start_process_group(Ranks.from_environment({}), timeout_seconds=TIMEOUT_SECONDS)
    try:
        ways = [*_ways(config, sizes, initialize_groups(seed=config.seed)), *further()]
        for turn in range(repeats + 1):
            # Rotate the order: whatever comes first in a round may find caches in another state.
            first = turn % len(ways)
            for way in (*ways[first:], *ways[:first]):
                way.run(is_timed=turn > 0)
            advance()
        return [_time_of(way, config, sizes) for way in ways]
    finally:
        destroy_groups()
        stop_process_group()


@dataclass(slots=True)
class _Way:
    """A native model, and the times and steps of its rounds."""

    name: str
    model: PonderModel
    sizes: DecodeSizes
    vocab_size: int
    seconds: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)

    def run(self, *, is_timed: bool) -> None:
        """Read prompts, then time the tokens after them."""
        sizes = self.sizes
        sequences = range(sizes.batch_size)
        decoder = BatchDecoder(
            self.model,
            num_sequences=sizes.batch_size,
            max_tokens=sizes.prompt_tokens + sizes.new_tokens,
        )
        tokens = random_tokens(sizes, self.vocab_size)
        prompts, news = tokens[:, : sizes.prompt_tokens], tokens[:, sizes.prompt_tokens :]
        decoder.read_prompts(sequences, prompts.tolist(), sweeps=Sweeps(number=0))
        columns = news.T.tolist()
        wait_for_device()
        started = time.perf_counter()
        taken = [decoder.consume(sequences, column).steps for column in columns]
        wait_for_device()
        if is_timed:
            self.seconds.append((time.perf_counter() - started) / sizes.new_tokens)
            self.steps.append(float(torch.stack(taken).double().mean()))


def random_tokens(sizes: DecodeSizes, vocab_size: int) -> torch.Tensor:
    """Draw prompts and the tokens after them, [B, prompt + new]."""
    generator = torch.Generator().manual_seed(1)
    shape = (sizes.batch_size, sizes.prompt_tokens + sizes.new_tokens)
    return torch.randint(vocab_size, shape, generator=generator)


def _vocab_size(config: RunConfig) -> int:
    return config.model.vocab_size or DEFAULT_VOCAB_SIZE


def _ways(config: RunConfig, sizes: DecodeSizes, groups: ParallelGroups) -> list[_Way]:
    vocab_size = _vocab_size(config)
    settings = transformer_config(config, vocab_size)

    def build(ponder: PonderConfig, bias: Sequence[float], spread: float = 0.0) -> PonderModel:
        model = PonderModel(replace(settings, ponder=ponder), groups.pg_collection)
        model.to(device()).eval()
        if isinstance(model.ponder, PonderLM3):
            _set_router(model.ponder, bias, spread)
        return model

    ponder = settings.ponder
    slots = range(ponder.num_slots)
    certain = [[CERTAIN * (step == slot) for slot in slots] for step in slots]
    models = {UNPRUNED: build(replace(ponder, pruning_threshold=0.0), certain[0])}
    models |= {f"{step} steps": build(ponder, certain[step]) for step in slots}
    models[MIXED] = build(ponder, [0.0 for _ in slots], DIVERSE)
    models[VANILLA] = build(PonderConfig(method=Method.VANILLA, num_latent_thoughts=0), [])
    return [_Way(name, model, sizes, vocab_size) for name, model in models.items()]


@torch.no_grad()
def _set_router(method: PonderLM3, bias: Sequence[float], spread: float) -> None:
    """Give the router's output layer a bias, and weights for logits of about `spread` units over tokens."""
    assert isinstance(method.router, nn.Sequential)
    first, output = method.router[0], method.router[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(output, nn.Linear)
    first.weight.normal_(std=method.hidden_size**-0.5)
    # The mean square of GELU of a standard normal number is about 0.43.
    output.weight.normal_(
        std=spread / (0.43 * output.in_features) ** 0.5
    ) if spread else output.weight.zero_()
    output.bias.copy_(torch.tensor(bias))


def _time_of(way: Way, config: RunConfig, sizes: DecodeSizes) -> DecodeTime:
    account = flops_account(config, _vocab_size(config))
    if not isinstance(way, _Way) or way.name == VANILLA:
        account = replace(account, method=Method.VANILLA, num_latent_thoughts=0)
    mean_steps = sum(way.steps) / len(way.steps)
    middle = sizes.prompt_tokens + (sizes.new_tokens - 1) / 2
    return DecodeTime(
        name=way.name,
        mean_steps=mean_steps,
        seconds_per_token=median(way.seconds),
        seconds_of_rounds=tuple(way.seconds),
        flops_per_token=account.inference_flops(mean_steps, tokens_before=middle).model,
    )


def wait_for_device() -> None:
    """Synchronize with the device before the clock is read."""
    if device().type == "cuda":
        torch.cuda.synchronize()

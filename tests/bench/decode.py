"""Time of a decoded token by the steps it takes, relative to vanilla decoding, with the FLOPs of each.

The router of a PonderLM-3 with random weights is biased, so that every token takes exactly 0, 1, .. K steps,
or as many as random router weights decide, or given shares of the tokens take 0, 1, .. K steps. Where steps
differ, sequences are also decoded token by token: all wait for the one that takes most steps. Prompts are
read before the clock starts. All ways take turns, so that a drift of the machine's speed affects them all.
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
TOKEN_BY_TOKEN = ", token by token"
# Shares of the tokens that take 0, 1, .. steps: what the router of the demo decides, and easier text.
ROUTERS = {"as the demo's router": (0.16, 0.37, 0.47), "mean of one step": (0.4, 0.3, 0.2, 0.1)}
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
        calls_per_token: calls of the layers for one token of each sequence; None where they were not counted.
        seconds_per_token: for one token of each sequence, median over the rounds.
        seconds_of_rounds: the same of every round.
        flops_per_token: for one token of one sequence in the middle of the timed ones, computed from the
            shape of the model.
    """

    name: str
    mean_steps: float
    calls_per_token: float | None
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
        Times without pruning, with 0..K steps, with steps that differ by token in several ways, each also
        token by token, of vanilla, of ``further``.
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
    """A native model, and the times and steps of its rounds.

    Attributes:
        token_by_token: all sequences wait for the one that takes most steps, instead of row by row.
    """

    name: str
    model: PonderModel
    sizes: DecodeSizes
    vocab_size: int
    token_by_token: bool = False
    num_calls: int = 0
    seconds: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)

    def run(self, *, is_timed: bool) -> None:
        """Read prompts, then time the tokens after them."""
        sizes = self.sizes
        sequences = range(sizes.batch_size)
        decoder = BatchDecoder(
            self.model,
            num_sequences=sizes.batch_size,
            max_tokens=sizes.prompt_tokens + 2 * sizes.new_tokens,
        )
        tokens = random_tokens(sizes, self.vocab_size)
        prompts, news = tokens[:, : sizes.prompt_tokens], tokens[:, sizes.prompt_tokens :]
        decoder.read_prompts(sequences, prompts.tolist(), sweeps=Sweeps(number=0))
        decoder.observe = self._count_calls
        self.num_calls = 0
        decode = _token_by_token if self.token_by_token else _row_by_row
        wait_for_device()
        started = time.perf_counter()
        taken = decode(decoder, news.tolist(), sizes.new_tokens)
        wait_for_device()
        if is_timed:
            self.seconds.append((time.perf_counter() - started) / sizes.new_tokens)
            self.steps.append(float(taken.double().mean()))
        else:
            _settle_router(self.model)

    def _count_calls(self, name: str, value: torch.Tensor) -> None:
        del value
        self.num_calls += name == "rows/sequences"


def _token_by_token(decoder: BatchDecoder, texts: Sequence[Sequence[int]], num_tokens: int) -> torch.Tensor:
    """Decode some tokens of each of B texts; return their steps."""
    columns = list(zip(*texts, strict=True))[:num_tokens]
    return torch.cat([decoder.consume(range(len(texts)), column).steps for column in columns])


def _row_by_row(decoder: BatchDecoder, texts: Sequence[Sequence[int]], num_tokens: int) -> torch.Tensor:
    """Decode B times as many tokens of B texts, of each as many as it comes to; return their steps."""
    rest = [iter(text) for text in texts]
    free = list(range(len(texts)))
    num_begun, total = 0, num_tokens * len(texts)
    taken: list[torch.Tensor] = []
    while num_begun < total or decoder.busy:
        following = {text: next(rest[text]) for text in free[: total - num_begun]}
        if following:
            decoder.begin(list(following), list(following.values()))
            num_begun += len(following)
        decoded = decoder.advance()
        free = [] if decoded is None else decoded.sequences
        taken += [] if decoded is None else [decoded.steps]
    return torch.cat(taken)


def random_tokens(sizes: DecodeSizes, vocab_size: int) -> torch.Tensor:
    """Draw prompts and the tokens after them, [B, prompt + 2 new]: fast texts get more than others."""
    generator = torch.Generator().manual_seed(1)
    shape = (sizes.batch_size, sizes.prompt_tokens + 2 * sizes.new_tokens)
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
    for name, shares in ROUTERS.items():
        if len(shares) <= len(slots):
            models[name] = build(ponder, certain[0])
            models[name].ponder.router = nn.Sequential(
                RouterOfShares(shares, len(slots), settings.hidden_size)
            )
    vanilla = build(PonderConfig(method=Method.VANILLA, num_latent_thoughts=0), [])
    return [
        *(_Way(name, model, sizes, vocab_size) for name, model in models.items()),
        *(
            _Way(name + TOKEN_BY_TOKEN, models[name], sizes, vocab_size, token_by_token=True)
            for name in (UNPRUNED, MIXED, *ROUTERS)
            if name in models
        ),
        _Way(VANILLA, vanilla, sizes, vocab_size),
    ]


class RouterOfShares(nn.Module):
    """A layer after which given shares of the tokens take 0, 1, .. steps, decided by their hidden states.

    It measures the tokens of its first round, all of which take K steps.
    """

    def __init__(self, shares: Sequence[float], num_slots: int, hidden_size: int) -> None:
        """Draw a direction: the further a token lies along it, the more steps it takes."""
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self._direction = torch.randn(hidden_size, generator=generator).to(device())
        self._bounds = torch.tensor(shares[:-1], dtype=torch.float64).cumsum(0)
        self._num_slots = num_slots
        self._measured: list[torch.Tensor] = []
        self._quantiles: torch.Tensor | None = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return router logits, [1, N, K + 1]."""
        scores = hidden @ self._direction.to(hidden.dtype)
        if self._quantiles is None:
            self._measured.append(scores.flatten())
            steps = torch.full_like(scores, self._num_slots - 1, dtype=torch.int64)
        else:
            steps = torch.bucketize(scores, self._quantiles)
        return CERTAIN * nn.functional.one_hot(steps, self._num_slots).to(scores.dtype)

    def settle(self) -> None:
        """Take the tokens that were measured as typical."""
        scores = torch.cat(self._measured)
        self._quantiles = torch.quantile(scores, self._bounds.to(scores))


def _settle_router(model: PonderModel) -> None:
    router = getattr(model.ponder, "router", None)
    if isinstance(router, nn.Sequential) and isinstance(router[0], RouterOfShares):
        router[0].settle()


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
        calls_per_token=way.num_calls / sizes.new_tokens if isinstance(way, _Way) else None,
        seconds_per_token=median(way.seconds),
        seconds_of_rounds=tuple(way.seconds),
        flops_per_token=account.inference_flops(mean_steps, tokens_before=middle).model,
    )


def wait_for_device() -> None:
    """Synchronize with the device before the clock is read."""
    if device().type == "cuda":
        torch.cuda.synchronize()

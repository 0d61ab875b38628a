"""Time of a decoded token by the steps it takes, relative to vanilla decoding, with the FLOPs of each.

The router of a PonderLM-3 with random weights is biased, so that every token takes the same number of steps,
or as many as random router weights decide, or given shares of the tokens take 0, 1, .. K steps. Where steps
differ, sequences are also decoded token by token: all wait for the one that takes most steps. Prompts are
read before the clock starts, and timed by themselves. All ways take turns, so that a drift of the machine's
speed affects them all.

The process that decodes with another checkout loads this file too, which therefore uses only what has long
been there, besides decoding row by row.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
class Round:
    """What decoding once took.

    Attributes:
        seconds, cpu_seconds: for one token of each sequence; of this process, on all its threads.
        reading_seconds, reading_cpu_seconds: of the prompts.
        mean_steps: extra steps of the timed tokens.
        calls_per_token: calls of the layers for one token of each sequence.
        rows_per_call: rows of such a call, of all sequences together.
    """

    seconds: float
    cpu_seconds: float
    reading_seconds: float
    reading_cpu_seconds: float
    mean_steps: float = 0.0
    calls_per_token: float = 1.0
    rows_per_call: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeTime:
    """Cost of one way to decode: medians over its rounds.

    Attributes:
        name: of the way.
        batch_size: sequences that are decoded together.
        rounds: of which the medians are taken.
        flops_per_token: for one token of one sequence in the middle of the timed ones, computed from the
            shape of the model.
    """

    name: str
    batch_size: int
    rounds: tuple[Round, ...]
    flops_per_token: float

    def median(self, figure: str) -> float:
        """Return the median of a figure of the rounds."""
        return median(float(getattr(one, figure)) for one in self.rounds)


class Way(Protocol):
    """A way to decode.

    Attributes:
        name: shown in the table.
        sizes: what is decoded.
    """

    name: str
    sizes: DecodeSizes

    @property
    def ponders(self) -> bool:
        """Whether tokens may take extra steps."""

    def run(self, *, is_timed: bool) -> Round:
        """Decode once."""


def time_decoding(
    config: RunConfig,
    sizes: Sequence[DecodeSizes],
    *,
    repeats: int,
    steps: Sequence[int] = (1,),
    most_seconds: float = float("inf"),
    further: Callable[[Sequence[DecodeSizes]], Sequence[Way]] = lambda sizes: (),
    watch: Callable[[float], None] = lambda share: None,
) -> list[DecodeTime]:
    """Time all ways in turns, on one rank and random tokens.

    Args:
        config: a PonderLM-3.
        sizes: what is decoded, by one batch size after the other.
        repeats: timed rounds, after one untimed round.
        steps: numbers of steps that all tokens take, each a way of its own.
        most_seconds: after the first timed round none begins that would end later.
        further: builds other ways to decode, which take their turns too.
        watch: called with the share of the work that is done, or of the time if that is larger.
    Returns:
        Times without pruning, with some numbers of steps, with steps that differ by token in several ways,
        these also token by token, of vanilla, of ``further``.
    """
    assert config.ponder.method is Method.PONDERLM3, "steps are controlled by the router of PonderLM-3"
    started = time.monotonic()
    with one_rank(config) as groups:
        ways: list[Way] = [*native_ways(config, sizes, groups, steps=steps), *further(sizes)]
        rounds: list[list[Round]] = [[] for _ in ways]
        for turn in range(repeats + 1):
            began = time.monotonic()
            # Rotate the order: whatever comes first in a round may find caches in another state.
            order = [(turn + index) % len(ways) for index in range(len(ways))] if turn else range(len(ways))
            for count, index in enumerate(order, start=1):
                result = ways[index].run(is_timed=turn > 0)
                rounds[index] += [result] if turn > 0 else []
                done = (turn + count / len(ways)) / (repeats + 1)
                watch(max(done, min((time.monotonic() - started) / most_seconds, 1.0)))
            now = time.monotonic()
            if turn > 0 and now - started + (now - began) > most_seconds:
                break
        return [_time_of(*one, config) for one in zip(ways, rounds, strict=True)]


@contextmanager
def one_rank(config: RunConfig) -> Iterator[ParallelGroups]:
    """Start the only rank of a run."""
    prepare_host()
    start_process_group(Ranks.from_environment({}), timeout_seconds=TIMEOUT_SECONDS)
    try:
        yield initialize_groups(seed=config.seed)
    finally:
        destroy_groups()
        stop_process_group()


@dataclass(slots=True)
class NativeWay:
    """A native model.

    Attributes:
        token_by_token: all sequences wait for the one that takes most steps, instead of row by row.
        calls: the rows of every call of the round.
    """

    name: str
    model: PonderModel
    sizes: DecodeSizes
    vocab_size: int
    token_by_token: bool = False
    calls: list[int] = field(default_factory=list)

    @property
    def ponders(self) -> bool:
        """See :class:`Way`."""
        return self.name != VANILLA

    def run(self, *, is_timed: bool) -> Round:
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
        started = clocks()
        decoder.read_prompts(sequences, prompts.tolist(), sweeps=Sweeps(number=0))
        read = clocks()
        decoder.observe = self._count_rows
        self.calls.clear()
        decode = _token_by_token if self.token_by_token else _row_by_row
        taken = decode(decoder, news.tolist(), sizes.new_tokens)
        ended = clocks()
        if not is_timed:
            _settle_router(self.model)
        return Round(
            seconds=(ended[0] - read[0]) / sizes.new_tokens,
            cpu_seconds=(ended[1] - read[1]) / sizes.new_tokens,
            reading_seconds=read[0] - started[0],
            reading_cpu_seconds=read[1] - started[1],
            mean_steps=float(taken.double().mean()),
            calls_per_token=len(self.calls) / sizes.new_tokens,
            rows_per_call=sum(self.calls) / len(self.calls),
        )

    def _count_rows(self, name: str, value: torch.Tensor) -> None:
        if name == "rows/sequences":
            self.calls.append(len(value))


def clocks() -> tuple[float, float]:
    """Return elapsed and CPU seconds once the device has done its work."""
    if device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


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


def native_ways(
    config: RunConfig,
    sizes: Sequence[DecodeSizes],
    groups: ParallelGroups,
    *,
    steps: Sequence[int],
    waiting: Sequence[str] = (MIXED, *ROUTERS),
) -> list[NativeWay]:
    """Build the models, which all ways of a name share, and the ways to decode, by batch size.

    Args:
        config, sizes, steps: see :func:`time_decoding`.
        groups: of the only rank.
        waiting: names of models that also decode token by token.
    """
    models, vocab_size = _models(config, groups, steps), _vocab_size(config)
    return [
        way
        for of_size in sizes
        for way in (
            *(NativeWay(name, model, of_size, vocab_size) for name, model in models.items()),
            *(
                NativeWay(name + TOKEN_BY_TOKEN, models[name], of_size, vocab_size, token_by_token=True)
                for name in waiting
                if name in models
            ),
        )
    ]


def _models(config: RunConfig, groups: ParallelGroups, steps: Sequence[int]) -> dict[str, PonderModel]:
    settings = transformer_config(config, _vocab_size(config))

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
    models |= {f"{step} steps": build(ponder, certain[step]) for step in steps if step in slots}
    models[MIXED] = build(ponder, [0.0 for _ in slots], DIVERSE)
    for name, shares in ROUTERS.items():
        if len(shares) <= len(slots):
            models[name] = build(ponder, certain[0])
            models[name].ponder.router = nn.Sequential(
                RouterOfShares(shares, len(slots), settings.hidden_size)
            )
    models[VANILLA] = build(PonderConfig(method=Method.VANILLA, num_latent_thoughts=0), [])
    return models


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


def _time_of(way: Way, rounds: Sequence[Round], config: RunConfig) -> DecodeTime:
    account = flops_account(config, _vocab_size(config))
    if not way.ponders:
        account = replace(account, method=Method.VANILLA, num_latent_thoughts=0)
    mean_steps = median(one.mean_steps for one in rounds)
    middle = way.sizes.prompt_tokens + (way.sizes.new_tokens - 1) / 2
    return DecodeTime(
        name=way.name,
        batch_size=way.sizes.batch_size,
        rounds=tuple(rounds),
        flops_per_token=account.inference_flops(mean_steps, tokens_before=middle).model,
    )

"""How each method thinks about a token in decoding: which rows run, and when it halts (definitions 2 to 4).

Native models and exported ones share this module, so it imports nothing but torch and its own neighbours.
Each function thinks about N tokens at once, as a generator: it yields the rows that it needs next, is sent
what came out of the layers, and yields tokens as soon as they have ended. Whoever drives it decides what else
runs in the same call of the layers: :func:`think` runs the rows of one generator alone, a decoder those of
all texts.

N = tokens of a call, n = rows a token starts with, K = extra steps, H = hidden size.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from megatron_ext.ponder.halting import (
    exit_masses,
    last_step_weights,
    log_key_mass,
    mix_exits,
    mix_steps,
    reaches,
    step_distribution,
    steps_taken,
    tail_mass,
)
from megatron_ext.ponder.renewal import Renewal

Observer = Callable[[str, Tensor], None]
# Hidden states after the final norm, [1, R, H], to what the next step adds or runs, in the same shape.
FeedBack = Callable[[Tensor], Tensor]


def ignore(name: str, value: Tensor) -> None:
    """Observe nothing."""
    del name, value


class RowRunner(Protocol):
    """Runs rows of N tokens through all layers against the stored rows of earlier tokens."""

    def __call__(
        self,
        rows: Tensor,
        *,
        tokens: Tensor | None = None,
        log_weight: Tensor | None = None,
        version: int = 0,
        normalize: bool = True,
        places: Tensor | None = None,
    ) -> Tensor:
        """Run rows, and store their keys and values.

        Args:
            rows: [1, R, H], only those that are needed.
            tokens: which of the N tokens each row belongs to, [R] int64, rising; None for one row of each.
            log_weight: of the rows' keys, [R]; None for 0.
            version: which version of the earlier tokens' keys and values the rows read and join; of a method
                that sees earlier steps, they read all versions up to it.
            normalize: apply the final norm.
            places: of the rows among those of their sequence, [R], where they replace only some of what is
                stored; None for the places that follow from the order of the rows.
        Returns:
            [1, R, H].
        """
        ...


class StepHalting(Protocol):
    """Ends the slots of tokens earlier than their decision does, by what the slots before came to."""

    def ends_before(self, step: int, hidden: Tensor) -> Tensor:
        """Return whether tokens take no slot from `step` on, [N] bool, once the slots before it have run.

        Args:
            step: 1..K.
            hidden: of all slots, [N, K + 1, H].
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows that a thought needs next; see :class:`RowRunner` for the fields. The answer is [1, R, H]."""

    rows: Tensor
    tokens: Tensor | None = None
    log_weight: Tensor | None = None
    version: int = 0
    normalize: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class FedBack:
    """Hidden states of which the next rows are made. The answer is `make(hidden)`.

    Attributes:
        hidden: [1, R, H].
        make: works on each row alone, so that thoughts with equal functions may be answered together.
    """

    hidden: Tensor
    make: FeedBack


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """Tokens that need no further row. The answer has no meaning.

    Attributes:
        hidden: [1, R, H], goes to the head.
        steps: extra steps that each of them took.
        tokens: which of the N tokens they are, [R] int64, rising; None for all.
    """

    hidden: Tensor
    steps: int
    tokens: Tensor | None = None


Thinking = Generator[Rows | FedBack | Ended, Tensor, None]


@dataclass(frozen=True, slots=True)
class ByMixture:
    """A function that feeds hidden states back by a mixture of embeddings.

    Equal where function and mixture are, which a `partial` is not.
    """

    function: Callable[[Tensor, FeedBack], Tensor]
    mix_embeddings: FeedBack

    def __call__(self, hidden: Tensor) -> Tensor:
        """See :data:`FeedBack`."""
        return self.function(hidden, self.mix_embeddings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thought:
    """The result of thinking about N tokens.

    Attributes:
        hidden: [1, N, H], goes to the head.
        steps: extra steps taken, [N] int64.
    """

    hidden: Tensor
    steps: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotDecision:
    """Which slots tokens take.

    Attributes:
        steps: the last slot of each token, [N] int64, in 0..K.
        log_weight: of each slot's key, [N, K + 1], or None where the method weighs none.
        shares: of the slots in what is read, [N, K + 1], or None where the last slot is read.
    """

    steps: Tensor
    log_weight: Tensor | None = None
    shares: Tensor | None = None

    def of_tokens(self, tokens: Tensor) -> "SlotDecision":
        """Return the decision on some of the tokens, [R]."""
        return SlotDecision(
            steps=self.steps[tokens],
            log_weight=None if self.log_weight is None else self.log_weight[tokens],
            shares=None if self.shares is None else self.shares[tokens],
        )

    def read(self, hidden: Tensor) -> Thought:
        """Read the slots of tokens, [N, K + 1, H]; shares of pruned slots are dropped, not redistributed."""
        if self.shares is None:
            tokens = torch.arange(len(hidden), device=hidden.device)
            return Thought(hidden=hidden[tokens, self.steps].unsqueeze(0), steps=self.steps)
        slot = torch.arange(hidden.shape[1], device=hidden.device)
        shares = torch.where(slot <= self.steps.unsqueeze(1), self.shares, 0.0)
        # [N, K + 1, H] -> [1, K + 1, N, H]; [N, K + 1] -> [1, K + 1, N]
        mixed = mix_steps(hidden.transpose(0, 1).unsqueeze(0), shares.T.unsqueeze(0))
        return Thought(hidden=mixed, steps=self.steps)

    def ended_at(self, steps: Tensor) -> "SlotDecision":
        """Return the decision to take no slots after others, [N]; the last one gets the shares beyond."""
        steps = torch.minimum(steps, self.steps)
        if self.shares is None:
            return replace(self, steps=steps)
        beyond = self.shares.flip(1).cumsum(1).flip(1)
        slot = torch.arange(self.shares.shape[1], device=steps.device)
        shares = torch.where(slot == steps.unsqueeze(1), beyond, self.shares)
        return replace(self, steps=steps, shares=shares)


def all_slots(token_hidden: Tensor, num_thoughts: int) -> SlotDecision:
    """Decide that each token takes all slots, with equal weight (ponderlm2): [1, N, H] -> N decisions."""
    return SlotDecision(steps=every_step(token_hidden, num_thoughts))


def slots_above(
    router_logits: Tensor,
    threshold: float,
    observe: Observer = ignore,
    *,
    hides_keys: bool = False,
    reads_last: bool = False,
) -> SlotDecision:
    """Decide that each token takes the slots whose tail mass reaches the threshold (ponderlm3).

    Args:
        router_logits: [1, N, K + 1].
        threshold: tau.
        observe: called with the names and values of intermediate results.
        hides_keys: whether training hides the keys of pruned slots, and then the slots at the threshold are
            pruned too.
        reads_last: the last slot that is kept is read, not the mixture.
    """
    # [1, K + 1, N] -> [N, K + 1]
    shares = step_distribution(router_logits)[0].T
    mass = _mass(shares)
    observe("s", shares)
    observe("tail_mass", mass)
    by_token = mass.T.unsqueeze(0)
    if reads_last:
        shares = last_step_weights(by_token, threshold, hides_keys=hides_keys)[0].T
    return SlotDecision(
        steps=steps_taken(by_token, threshold, hides_keys=hides_keys)[0],
        log_weight=log_key_mass(mass, threshold, hides_keys=hides_keys),
        shares=shares,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRules:
    """How the passes of a training forward decide (ponderlm3).

    Attributes:
        renewal: when the router is asked.
        num_thoughts, num_sweeps: K and J of the forward.
        threshold: tau.
        hides_keys: hide the keys of slots below tau.
        reads_last: the last slot is read, not the mixture.
    """

    renewal: Renewal
    num_thoughts: int
    num_sweeps: int
    threshold: float
    hides_keys: bool
    reads_last: bool


class TrainingDecisions:
    """Decides pass after pass as a training forward does: each token takes all slots.

    An instance is for one forward and decides once after every pass.
    """

    def __init__(self, route: Callable[[Tensor], Tensor], rules: TrainingRules) -> None:
        """Start before the first pass.

        Args:
            route: slot 0 after the final norm, [1, N, H], to router logits, [1, N, K + 1].
            rules: of the forward.
        """
        self._route, self._rules = route, rules
        self._num_passes = 0
        self._shares = torch.empty(0)

    def __call__(self, token_hidden: Tensor) -> SlotDecision:
        """Decide after the next pass, by its slot 0, [1, N, H]."""
        rules = self._rules
        share = rules.renewal.share(
            self._num_passes, num_thoughts=rules.num_thoughts, num_sweeps=rules.num_sweeps
        )
        self._num_passes += 1
        if share > 0.0:
            # [1, K + 1, N] -> [N, K + 1]
            found = step_distribution(self._route(token_hidden))[0].T
            self._shares = found if share == 1.0 else torch.lerp(self._shares, found, share)
        mass = _mass(self._shares)
        return SlotDecision(
            steps=every_step(token_hidden, rules.num_thoughts),
            log_weight=log_key_mass(mass, rules.threshold, hides_keys=rules.hides_keys),
            shares=_last_of(mass) if rules.reads_last else self._shares,
        )

    def steps_of_decoding(self) -> Tensor:
        """Return the extra steps that decoding would take by the last decision, [N]."""
        mass = _mass(self._shares).T.unsqueeze(0)
        return steps_taken(mass, self._rules.threshold, hides_keys=self._rules.hides_keys)[0]


def _mass(shares: Tensor) -> Tensor:
    """Return w from s, [N, K + 1] each."""
    return tail_mass(shares.T.unsqueeze(0))[0].T


def _last_of(mass: Tensor) -> Tensor:
    """Return 1 for slot K and 0 for the others, [N, K + 1]."""
    return last_step_weights(mass.T.unsqueeze(0), 0.0)[0].T


def every_step(of_tokens: Tensor, num_steps: int) -> Tensor:
    """Return K for each token: [1, N, H] -> [N]."""
    return torch.full((of_tokens.shape[1],), num_steps, dtype=torch.int64, device=of_tokens.device)


def think(thinking: Thinking, run: RowRunner) -> Thought:
    """Think about the tokens of one generator to the end, without other tokens in the calls of the layers.

    Args:
        thinking: about N tokens.
        run: runs and stores rows.
    """
    ended: list[Ended] = []
    try:
        request = next(thinking)
        while True:
            request = thinking.send(_answer(request, run, ended))
    except StopIteration:
        return _in_order(ended)


def _answer(request: Rows | FedBack | Ended, run: RowRunner, ended: list[Ended]) -> Tensor:
    match request:
        case Ended():
            ended.append(request)
            return request.hidden
        case FedBack():
            return request.make(request.hidden)
        case Rows():
            return run(
                request.rows,
                tokens=request.tokens,
                log_weight=request.log_weight,
                version=request.version,
                normalize=request.normalize,
            )


def _in_order(ended: Sequence[Ended]) -> Thought:
    """Return the thought of all tokens, which ended at different times."""
    steps = torch.cat([every_step(one.hidden, one.steps) for one in ended])
    if len(ended) == 1:
        return Thought(hidden=ended[0].hidden, steps=steps)
    order = torch.cat([one.tokens for one in ended if one.tokens is not None]).argsort()
    return Thought(hidden=torch.cat([one.hidden for one in ended], dim=1)[:, order], steps=steps[order])


def think_in_rows(rows: Tensor) -> Thinking:
    """Run the rows a token starts with, one after another, and read the last one (vanilla, pause).

    Args:
        rows: [n, N, H].
    """
    for row in rows.split(1):
        hidden = yield Rows(rows=row)
    yield Ended(hidden=hidden, steps=len(rows) - 1)


def think_in_slots(
    rows: Tensor,
    *,
    num_thoughts: int,
    decide: Callable[[Tensor], SlotDecision],
    next_thought: FeedBack,
    halting: StepHalting | None = None,
) -> Thinking:
    """Run slot after slot, each for the tokens that take it (ponderlm2, ponderlm3).

    Args:
        rows: slot 0 of each token, [1, N, H].
        num_thoughts: K.
        decide: slot 0 after the final norm, [1, N, H], to the slots that the tokens take.
        next_thought: makes a slot from the slot before it.
        halting: ends the slots of a token earlier.
    """
    first = yield Rows(rows=rows)
    decision = decide(first)
    # [1, N, H] -> [N, K + 1, H]
    hidden = first.new_zeros(first.shape[1], num_thoughts + 1, first.shape[2])
    hidden[:, 0] = first[0]
    steps, taken = decision.steps, decision.steps.tolist()
    for step in range(1, num_thoughts + 2):
        if halting is not None and step <= num_thoughts:
            steps = torch.where(halting.ends_before(step, hidden), steps.clamp_max(step - 1), steps)
            taken = steps.tolist()
        if step - 1 in taken:
            last = decision if halting is None else decision.ended_at(steps)
            ended = _where([one == step - 1 for one in taken], like=steps)
            thought = last.read(hidden) if ended is None else last.of_tokens(ended).read(hidden[ended])
            yield Ended(tokens=ended, hidden=thought.hidden, steps=step - 1)
        if max(taken) < step:
            return
        # Indexing by a slice makes no copy.
        active = _where([one >= step for one in taken], like=steps)
        chosen = slice(None) if active is None else active
        weight = None if decision.log_weight is None else decision.log_weight[chosen, step]
        thoughts = yield FedBack(hidden=hidden[chosen, step - 1].unsqueeze(0), make=next_thought)
        of_slot = yield Rows(rows=thoughts, tokens=active, log_weight=weight)
        hidden[chosen, step] = of_slot[0]


def _where(chosen: Sequence[bool], *, like: Tensor) -> Tensor | None:
    """Return the numbers of the chosen tokens, [R] int64; None where all are."""
    if all(chosen):
        return None
    numbers = [number for number, is_chosen in enumerate(chosen) if is_chosen]
    return torch.tensor(numbers, dtype=torch.int64, device=like.device)


def think_in_loops(rows: Tensor, *, num_iterations: int) -> Thinking:
    """Run a row again and again on its own output, with one final norm at the end (loop).

    Loop i reads the keys and values of loop i of earlier tokens.

    Args:
        rows: [1, N, H].
        num_iterations: K, loops after the first.
    """
    hidden = rows
    for iteration in range(num_iterations + 1):
        hidden = yield Rows(rows=hidden, version=iteration, normalize=iteration == num_iterations)
    yield Ended(hidden=hidden, steps=num_iterations)


def think_by_feedback(
    first: Tensor, *, num_iterations: int, feed_back: FeedBack, from_first: bool
) -> Thinking:
    """Add what an iteration predicts to the input of the next one (ponderlm).

    Iteration i reads the keys and values of iteration i of earlier tokens.

    Args:
        first: input of the first iteration, [1, N, H].
        num_iterations: K, iterations after the first.
        feed_back: hidden states to what is added.
        from_first: add to the first input instead of the last one.
    """
    running = first
    hidden = yield Rows(rows=running)
    for iteration in range(1, num_iterations + 1):
        update = yield FedBack(hidden=hidden, make=feed_back)
        running = (first if from_first else running) + update
        hidden = yield Rows(rows=running, version=iteration)
    yield Ended(hidden=hidden, steps=num_iterations)


def think_until_halted(
    first: Tensor,
    *,
    num_iterations: int,
    feed_back: FeedBack,
    gate: Callable[[int, Tensor], Tensor],
    threshold: float,
    observe: Observer = ignore,
) -> Thinking:
    """Iterate as :func:`think_by_feedback`, each token until its gate closes (adaponderlm).

    A halted token keeps its hidden state, and its keys and values, from the last iteration that it ran.

    Args:
        first, num_iterations, feed_back: see there.
        gate: iteration and its hidden states, [1, R, H], to gate logits, [1, R].
        threshold: tau, the smallest gate value that lets a token continue.
        observe: called with the names and values of intermediate results.
    """
    hidden = yield Rows(rows=first)
    running = first
    active = torch.arange(first.shape[1], device=first.device)
    for iteration in range(num_iterations):
        logits = gate(iteration, hidden)
        observe(f"gate_logits/{iteration}", torch.stack([active.to(logits.dtype), logits[0]]))
        share = torch.sigmoid(logits)
        continues = share[0] >= threshold
        halted = active[~continues]
        if len(halted) > 0:
            yield Ended(tokens=halted, hidden=hidden[:, ~continues], steps=iteration)
        active = active[continues]
        if len(active) == 0:
            return
        update = yield FedBack(hidden=hidden[:, continues], make=feed_back)
        running = running[:, continues] + update * share[:, continues].unsqueeze(-1).to(update.dtype)
        hidden = yield Rows(rows=running, tokens=active, version=iteration + 1)
    yield Ended(tokens=active, hidden=hidden, steps=num_iterations)


def think_until_stopped(
    first: Tensor,
    *,
    num_steps: int,
    next_input: FeedBack,
    router: Callable[[Tensor], Tensor],
    threshold: float,
    observe: Observer = ignore,
) -> Thinking:
    """Run step after step, each for the tokens that reach it, and read their mean (adaptive_latent_cot).

    Step k reads the keys and values of steps 0..k of tokens up to its own.

    Args:
        first: input of step 0, [1, N, H].
        num_steps: K, steps after the first.
        next_input: makes the input of a step from the step before it.
        router: hidden states, [1, R, H], to the logits of continuing, [1, R].
        threshold: tau, the smallest reach that lets a token continue.
        observe: called with the names and values of intermediate results.
    """
    hidden = yield Rows(rows=first)
    # Of the tokens that still run: hidden states and router logits of all their steps.
    of_steps, of_routers = [hidden], []
    active = torch.arange(first.shape[1], device=first.device)
    reach: Tensor | None = None
    for step in range(1, num_steps + 1):
        logits = router(hidden)
        observe(f"continue_logits/{step - 1}", torch.stack([active.to(logits.dtype), logits[0]]))
        of_routers.append(logits)
        reach = reaches(torch.ones_like(logits) if reach is None else reach, logits)
        continues = reach[0] >= threshold
        if not bool(continues.all()):
            stops = ~continues
            left, asked = ([one[:, stops] for one in values] for values in (of_steps, of_routers))
            yield Ended(tokens=active[stops], hidden=_mean_of_exits(left, asked, threshold), steps=step - 1)
        active, reach = active[continues], reach[:, continues]
        if len(active) == 0:
            return
        of_steps, of_routers = ([one[:, continues] for one in values] for values in (of_steps, of_routers))
        hidden = yield Rows(
            rows=next_input(of_steps[-1]),
            tokens=active,
            version=step,
        )
        of_steps.append(hidden)
    yield Ended(tokens=active, hidden=_mean_of_exits(of_steps, of_routers, threshold), steps=num_steps)


def _mean_of_exits(of_steps: Sequence[Tensor], of_routers: Sequence[Tensor], threshold: float) -> Tensor:
    """Read tokens that have run the same steps, [1, R, H] each, by the logits after them, [1, R] each."""
    if not of_routers:
        return of_steps[0]
    masses, _ = exit_masses(torch.stack(list(of_routers), dim=-1), threshold)
    # A step that was refused has no mass.
    return mix_exits(of_steps, masses[:, : len(of_steps)])

"""A native checkpoint as a model of lm-evaluation-harness, which scores and continues texts."""

import logging
from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from megatron_ext.ponder.step_limits import UNLIMITED, StepLimits
from pipeline.evaluation.costs import RealizedCost, add_costs
from pipeline.evaluation.harness.generation import GenerationRequest, continue_texts
from pipeline.evaluation.opened import OpenedCheckpoint
from pipeline.evaluation.replicas import over_replicas
from pipeline.evaluation.scoring import ScoredText, TextToScore, score_texts
from pipeline.generation.texts import GenerationSettings
from pipeline.shared.errors import DataError

logger = logging.getLogger(__name__)

EncodedPair = tuple[tuple[str, str], list[int], list[int]]


class CheckpointModel(TemplateLM):  # type: ignore[misc]  # the harness has no types
    """Runs the requests of tasks; every rank gets all of them, and replicas share the work.

    The harness sees a single process, whatever the layout: each rank has all results and all scores.

    Attributes:
        costs: of the tokens of each task so far.
    """

    def __init__(
        self, checkpoint: OpenedCheckpoint, *, batch_size: int, limits: StepLimits = UNLIMITED
    ) -> None:
        """Wrap a checkpoint.

        Args:
            checkpoint: whose data name a tokenizer.
            batch_size: texts that a replica reads or continues together.
            limits: on the steps that tokens take.
        """
        super().__init__()
        self._checkpoint = checkpoint
        self._tokenizer = checkpoint.tokenizer
        self._bos_id = checkpoint.bos_id
        self._batch_size = batch_size
        self._limits = limits
        # Texts are read as prompts are, until nothing moves.
        self._sweeps = GenerationSettings().sweeps(checkpoint.module.config.params_dtype)
        self._task_names: Sequence[str] = ()
        self.costs: dict[str, RealizedCost] = {}

    @property
    def max_length(self) -> int:
        """Tokens that the model sees at once: as many as in training."""
        return self._checkpoint.config.training.seq_length

    @property
    def eot_token_id(self) -> int:
        """The token that ends documents."""
        return self._tokenizer.eod_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context: documents begin with it, or else follow it."""
        return self.eot_token_id if self._bos_id is None else self._bos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the token ids of a text, after the token that documents begin with, if the data have one."""
        if add_special_tokens is not False and string:
            return self._checkpoint.prompt_ids(string)
        ids: list[int] = self._tokenizer.encode(string).tolist()
        begins = self._bos_id is not None and add_special_tokens is not False
        return [self.prefix_token_id, *ids] if begins else ids

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Score the continuation of each context."""
        self._task_names = [request.task_name for request in requests]
        scored: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return scored

    def _loglikelihood_tokens(self, requests: list[EncodedPair], **_: Any) -> list[tuple[float, bool]]:
        texts = [_text(context, targets, self.max_length) for _, context, targets in requests]
        num_cut = sum(len(context) + len(targets) - 1 > self.max_length for _, context, targets in requests)
        if num_cut > 0 and self._checkpoint.groups.rank == 0:
            logger.warning(
                "%d of %d questions are longer than the %d tokens of training.seq_length and are cut",
                num_cut,
                len(requests),
                self.max_length,
            )
        scored = self._score(texts, self._task_names)
        return [(text.log_likelihood, text.is_greedy) for text in scored]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Score complete texts, longer ones in windows; every token is scored once."""
        del disable_tqdm
        texts, owners = [], []
        for number, request in enumerate(requests):
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0], add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                context, targets = make_disjoint_window(window)
                texts.append(_text(context, targets, self.max_length))
                owners.append(number)
        scored = self._score(texts, [requests[owner].task_name for owner in owners])
        totals = [0.0] * len(requests)
        for owner, text in zip(owners, scored, strict=True):
            totals[owner] += text.log_likelihood
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Continue each context up to its stop strings."""
        del disable_tqdm
        texts = continue_texts(
            self._checkpoint,
            [self._generation_request(*request.args) for request in requests],
            batch_size=self._batch_size,
            limits=self._limits,
        )
        names = [request.task_name for request in requests]
        self._add_costs(names, [text.cost for text in texts])
        return [text.continuation for text in texts]

    def _generation_request(self, context: str, options: dict[str, Any]) -> GenerationRequest:
        ids = self.tok_encode(context) or [self.prefix_token_id]
        return GenerationRequest.of(ids, options, max_length=self.max_length)

    def _score(self, texts: Sequence[TextToScore], names: Sequence[str]) -> list[ScoredText]:
        def work(own: Sequence[TextToScore]) -> list[ScoredText]:
            return score_texts(
                self._checkpoint.module,
                own,
                batch_size=self._batch_size,
                sweeps=self._sweeps,
                limits=self._limits,
            )

        scored = over_replicas(texts, work, size=_num_tokens, groups=self._checkpoint.groups)
        costs = [RealizedCost(num_tokens=text.num_tokens, num_steps=text.num_steps) for text in scored]
        self._add_costs(names, costs)
        return scored

    def _add_costs(self, names: Sequence[str], costs: Sequence[RealizedCost]) -> None:
        self.costs = add_costs(self.costs, zip(names, costs, strict=True))


def _num_tokens(text: TextToScore) -> int:
    return len(text.tokens)


def _text(context: list[int], targets: list[int], max_length: int) -> TextToScore:
    """Return the last tokens that the model can see at once; the last target is predicted, not seen.

    Raises:
        DataError: not even the targets fit.
    """
    if len(targets) > max_length:
        raise DataError(
            f"what a task asks the model to score must fit into the {max_length} tokens of "
            f"training.seq_length, but has {len(targets)}; remove the task"
        )
    return TextToScore(tokens=[*context, *targets][-(max_length + 1) :], num_targets=len(targets))

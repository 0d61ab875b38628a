"""Continuations for tasks of lm-evaluation-harness, by the project's own generation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs

from megatron_ext.ponder.step_limits import UNLIMITED, StepLimits
from pipeline.evaluation.costs import RealizedCost
from pipeline.evaluation.opened import OpenedCheckpoint
from pipeline.evaluation.replicas import over_replicas
from pipeline.generation.texts import GenerationSettings, SamplingSettings, generate
from pipeline.shared.errors import DataError

_KNOWN_OPTIONS = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One text to continue.

    Attributes:
        tokens: of the prompt, as many of the last ones as leave room for the continuation.
        settings: how; its batch size is ignored.
    """

    tokens: tuple[int, ...]
    settings: GenerationSettings

    @classmethod
    def of(cls, tokens: Sequence[int], options: dict[str, Any], *, max_length: int) -> "GenerationRequest":
        """Parse the options of a task.

        Args:
            tokens: of the complete prompt, at least one.
            options: `generation_kwargs` of the task.
            max_length: tokens that the model sees at once.
        Raises:
            DataError: an option is unknown, or the continuation leaves no room for a prompt.
        """
        options = dict(normalize_gen_kwargs(options))
        unknown = sorted(options.keys() - _KNOWN_OPTIONS)
        if unknown:
            raise DataError(
                f"generation_kwargs of a task must be among {', '.join(sorted(_KNOWN_OPTIONS))}, but has "
                f"{', '.join(unknown)}; remove it in a copy of the task (--include-path)"
            )
        room = max_length - options["max_gen_toks"]
        if room < 1:
            raise DataError(
                f"max_gen_toks of a task must be below the {max_length} tokens that the model sees at once, "
                f"but is {options['max_gen_toks']}; set it in a copy of the task (--include-path)"
            )
        settings = GenerationSettings(
            num_tokens=options["max_gen_toks"],
            stop=tuple(text for text in options["until"] if text),
            sampling=_sampling(options),
        )
        return cls(tokens=tuple(tokens[-room:]), settings=settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinuedText:
    """A continuation, up to its stop string, and what prompt and continuation cost."""

    continuation: str
    cost: RealizedCost


def continue_texts(
    checkpoint: OpenedCheckpoint,
    requests: Sequence[GenerationRequest],
    *,
    batch_size: int,
    limits: StepLimits = UNLIMITED,
) -> list[ContinuedText]:
    """Continue texts; all ranks call this with the same requests and get all continuations.

    Replicas share greedy requests. What a request samples depends on its place among those with equal
    settings, so each replica samples all of them.

    Args:
        checkpoint: the model.
        requests: what to continue.
        batch_size: texts that a replica continues together.
        limits: on the steps that tokens take.
    """
    found: dict[int, ContinuedText] = {}
    for settings in dict.fromkeys(request.settings for request in requests):
        numbers = [number for number, request in enumerate(requests) if request.settings == settings]
        work = _Generation(checkpoint, replace(settings, batch_size=batch_size, limits=limits))
        prompts = [requests[number].tokens for number in numbers]
        if settings.sampling.temperature == 0:
            texts = over_replicas(prompts, work, size=len, groups=checkpoint.groups)
        else:
            texts = work(prompts)
        found |= zip(numbers, texts, strict=True)
    return [found[number] for number in range(len(requests))]


@dataclass(frozen=True, slots=True)
class _Generation:
    checkpoint: OpenedCheckpoint
    settings: GenerationSettings

    def __call__(self, prompts: Sequence[Sequence[int]]) -> list[ContinuedText]:
        if not prompts:
            return []
        texts = sorted(generate(self.checkpoint, prompts, self.settings), key=lambda text: text.number)
        return [
            ContinuedText(
                continuation=text.continuation,
                cost=RealizedCost(
                    num_tokens=len(text.tokens), num_steps=sum(token.steps for token in text.tokens)
                ),
            )
            for text in texts
        ]


def _sampling(options: dict[str, Any]) -> SamplingSettings:
    if not options["do_sample"]:
        return SamplingSettings()
    return SamplingSettings(
        temperature=float(options.get("temperature", 1.0)),
        top_k=options.get("top_k"),
        top_p=float(options.get("top_p", 1.0)),
    )

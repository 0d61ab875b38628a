"""Load the initial weights of a run from another one (`init_from`)."""

import logging
from pathlib import Path

from megatron_ext.parallel.groups import ParallelGroups
from pipeline.checkpoint.folder import CONFIG_NAME
from pipeline.checkpoint.identity import StoredTokenizer, read_identity
from pipeline.checkpoint.loading import content_of, of_the_model, read_sharded
from pipeline.checkpoint.offline import OfflineReader
from pipeline.checkpoint.resuming import check_intact
from pipeline.checkpoint.tracker import resolve_checkpoint
from pipeline.config.load import load_config
from pipeline.config.schema import RunConfig
from pipeline.shared.errors import CheckpointError
from pipeline.step.build import TrainingParts

logger = logging.getLogger(__name__)

EMBEDDING = "embedding.word_embeddings.weight"
# Settings of the model that do not change what trained weights compute.
_FREE_MODEL_SETTINGS = {
    "init",
    "init_std",
    "make_vocab_size_divisible_by",
    "max_position_embeddings",
    "padding_token_id",
    "vocab_size",
}


def load_initial_weights(
    config: RunConfig,
    parts: TrainingParts,
    groups: ParallelGroups,
    *,
    vocab_size: int,
    converted: Path | None = None,
    tokenizer: StoredTokenizer | None = None,
) -> None:
    """Load the weights that `init_from` names; all ranks call it together.

    Args:
        config: the run, with `init_from.path`.
        parts: model and optimizer, just built.
        groups: the layout.
        vocab_size: tokens of the run's tokenizer.
        converted: the checkpoint that a source of another format was converted to, else None.
        tokenizer: of the run, if it is known.
    Raises:
        CheckpointError: there is no such checkpoint, it is damaged, or its model is one that this run cannot
            start from.
    """
    start = config.init_from
    assert start.path is not None, "without a path there is nothing to start from"
    folder = resolve_checkpoint(converted or start.path, iteration=start.iteration)
    source = load_config(folder / CONFIG_NAME)
    _check_method(config, source, folder)
    _check_start(config, source, folder)
    _check_model(config, source, folder)
    check_intact(folder, reads=config.checkpoint.verify)
    _check_vocabulary(source, folder, vocab_size)
    _warn_of_other_tokenizer(folder, tokenizer)
    content = {"model": parts.module.sharded_state_dict(metadata=content_of(folder))}
    loaded, missing, unexpected = read_sharded(content, folder, groups.dp_cp)
    unused = of_the_model(unexpected)
    _check_weights(config, folder, missing=missing, unused=unused)
    parts.module.load_state_dict(loaded["model"], strict=not missing)
    parts.optimizer.reload_model_params()
    _log(config, source, folder, new=missing, unused=unused)


def model_differences(config: RunConfig, source: RunConfig) -> list[str]:
    """List every setting of the model in which a run differs from the one whose weights it loads."""
    return [
        f"model.{name} is {getattr(config.model, name)} here and {getattr(source.model, name)} there"
        for name in type(config.model).model_fields
        if name not in _FREE_MODEL_SETTINGS and getattr(config.model, name) != getattr(source.model, name)
    ]


def _check_method(config: RunConfig, source: RunConfig, folder: Path) -> None:
    named, found = config.init_from.method, source.ponder.method
    if named != found:
        raise CheckpointError(
            f"init_from.method must be {found}, the method of {folder}, but is {named}; see "
            f"{folder / CONFIG_NAME}"
        )


def _check_start(config: RunConfig, source: RunConfig, folder: Path) -> None:
    """Check that a blended start begins with what the source's model reads, which is the state of step 0."""
    blended, steps = config.ponder.blended_start_iterations, source.ponder.num_latent_thoughts
    if blended > 0 and steps > 0:
        raise CheckpointError(
            "ponder.blended_start_iterations must be 0 where the initial model already takes extra steps, "
            f"but is {blended}, and the model in {folder} takes {steps}; leave it out"
        )


def _check_model(config: RunConfig, source: RunConfig, folder: Path) -> None:
    differing = model_differences(config, source)
    if differing:
        raise CheckpointError(
            f"{folder} must hold this run's model to start from, but {'; '.join(differing)}; "
            f"use the model settings in {folder / CONFIG_NAME}"
        )


def _check_vocabulary(source: RunConfig, folder: Path, vocab_size: int) -> None:
    """Check the rows of the embedding: rows that are absent would be loaded as zeros."""
    entry = OfflineReader(folder).tensors.get(EMBEDDING)
    if entry is None:
        return
    rows, expected = entry.size[0], source.padded_vocab_size(vocab_size)
    if rows != expected:
        raise CheckpointError(
            f"{folder} must hold the embedding of a vocabulary of {vocab_size} tokens ({expected} rows with "
            f"padding), but has {rows} rows; start from a run with this run's tokenizer"
        )


def _warn_of_other_tokenizer(folder: Path, tokenizer: StoredTokenizer | None) -> None:
    """Report another tokenizer: a new run may have one, but its embeddings then mean little."""
    there = read_identity(folder)
    trained = None if there is None else there.tokenizer
    if trained is not None and tokenizer is not None and trained.meaning != tokenizer.meaning:
        logger.warning(
            "%s WAS TRAINED WITH ANOTHER TOKENIZER, %s; this run has %s, for which its embeddings were not "
            "trained",
            folder,
            trained,
            tokenizer,
        )


def _check_weights(config: RunConfig, folder: Path, *, missing: list[str], unused: list[str]) -> None:
    method = config.ponder.method
    decider = method.facts.decider if config.init_from.method != method else None
    absent = [name for name in missing if decider is None or not name.startswith(f"ponder.{decider.name}.")]
    if absent:
        raise CheckpointError(
            f"{folder} must hold all weights that {method} loads from {config.init_from.method}, but lacks "
            f"{', '.join(absent)}"
        )
    if unused and not config.init_from.allow_unused:
        raise CheckpointError(
            f"{folder} must hold no weights that {method} does not have, but holds {', '.join(unused)}; set "
            "init_from.allow_unused: true to ignore them"
        )


def _log(config: RunConfig, source: RunConfig, folder: Path, *, new: list[str], unused: list[str]) -> None:
    logger.info(
        "started from the weights in %s (%s); optimizer, schedule and order of the data start from scratch",
        folder,
        source.ponder.method,
    )
    decider = config.ponder.method.facts.decider_of(config.ponder.router_form)
    if new and decider is not None:
        logger.info("new weights: %s; %s", ", ".join(new), decider.start)
    if unused:
        logger.info("unused weights of the source: %s", ", ".join(unused))
    for name in type(config.ponder).model_fields:
        here, there = getattr(config.ponder, name), getattr(source.ponder, name)
        if here != there and name != "method":
            logger.info("ponder.%s is %s here, and was %s in the training of the source", name, here, there)

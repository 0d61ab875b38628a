"""The run of a converted checkpoint: its settings, and the model that they describe."""

from collections.abc import Sequence
from typing import Any

from megatron_ext.model.config import PonderTransformerConfig
from megatron_ext.ponder.config import Method
from pipeline.config.errors import ConfigError, as_written
from pipeline.config.load import build_config, setting_paths, text_paths
from pipeline.config.overrides import apply_overrides
from pipeline.config.rules_ponder import default_of
from pipeline.config.schema import RunConfig
from pipeline.conversion.hf_config import SourceModel
from pipeline.shared.errors import ConversionError
from pipeline.step.megatron_config import transformer_config

# Taken as the data where no KEY=VALUE names any: an evaluation then reports that there are none.
NO_DATA = "no-data-were-given"


def run_settings(
    source: SourceModel, *, method: Method | None, overrides: Sequence[str], precision: str
) -> RunConfig:
    """Return the settings of a run of the source's model.

    Args:
        source: what its config.json says.
        method: of the run; None is the source's own.
        overrides: ``group.key=value``, which replace what the source says, except for the backbone.
        precision: of the weights.
    Raises:
        ConversionError: the method cannot start from the source's, a setting contradicts the source, or pause
            tokens have no row that the source holds.
        ConfigError: the settings are no configuration.
    """
    chosen = method or source.method
    if chosen != source.method and source.method not in chosen.facts.continues:
        sources = ", ".join(chosen.facts.continues) or "nothing else"
        raise ConversionError(
            f"--method must be {source.method}, like the source, or a method that can start from it, but is "
            f"{chosen}, which starts from {sources}"
        )
    settings: dict[str, Any] = {
        "name": "converted",
        "model": {key: value for key, value in source.model.items() if value is not None},
        "ponder": _ponder_settings(source, chosen),
        # The schema requires these sections; no step has been trained yet.
        "training": {
            "seq_length": source.model["max_position_embeddings"],
            "micro_batch_size": 1,
            "global_batch_size": 1,
            "train_iters": 1,
            "precision": precision,
        },
        "optimizer": {"lr": 1e-5},
        "data": {"path": NO_DATA},
    }
    problems = apply_overrides(settings, overrides, setting_paths(), text_paths=text_paths())
    if problems:
        raise ConfigError(problems, source="KEY=VALUE")
    config = build_config(settings)
    _refuse_contradictions(config, source)
    _refuse_a_missing_pause_row(config, source)
    return config


def one_process(config: RunConfig, **sections: dict[str, Any]) -> RunConfig:
    """Return the run on one rank, with some of its sections replaced."""
    settings = config.model_dump(mode="json", exclude={"parallel", "init_from"})
    return build_config({**settings, **sections})


def converted_model(config: RunConfig, vocab_size: int) -> PonderTransformerConfig:
    """Return the model of a run on one rank."""
    return transformer_config(one_process(config), vocab_size)


def _ponder_settings(source: SourceModel, chosen: Method) -> dict[str, Any]:
    """Return the source's settings, without those at their defaults that the chosen method does not use."""
    unused = {
        name
        for name, value in source.ponder.items()
        if name not in ("method", *chosen.facts.settings) and value == default_of(name, source.method)
    }
    kept = {name: value for name, value in source.ponder.items() if name not in unused}
    return {**kept, "method": chosen.value}


def _refuse_a_missing_pause_row(config: RunConfig, source: SourceModel) -> None:
    is_new = config.ponder.method.facts.has_pause_tokens and not source.method.facts.has_pause_tokens
    if is_new and config.ponder.pause_token_id is None:
        raise ConversionError(
            "ponder.pause_token_id must name the embedding row of pause tokens, as a converted embedding "
            "has only the source's rows; choose one that the tokenizer does not use with "
            "ponder.pause_token_id=N"
        )


def _refuse_contradictions(config: RunConfig, source: SourceModel) -> None:
    differing = [
        f"model.{name} is {as_written(value)} there, but {as_written(getattr(config.model, name))} here"
        for name, value in source.model.items()
        if getattr(config.model, name) != value
    ]
    if differing:
        raise ConversionError(
            f"KEY=VALUE must keep the backbone of the source's config.json, but {'; '.join(differing)}"
        )

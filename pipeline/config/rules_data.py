"""Rules on the training and evaluation data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.config.errors import ConfigProblem

if TYPE_CHECKING:
    from pipeline.config.schema import RunConfig


def _place(config: RunConfig) -> Iterator[ConfigProblem]:
    data = config.data
    if data.path is None and data.sources is None:
        yield ConfigProblem(path="data.path", rule="must be given", value="missing", cure="add it")
    if data.path is not None and data.sources is not None:
        yield ConfigProblem(
            path="data.sources",
            rule="must not be given together with data.path: training reads one path or a blend",
            value=f"{len(data.sources)} sources",
            cure=f"make {data.path} one of the sources",
        )


def _source_names(config: RunConfig) -> Iterator[ConfigProblem]:
    names = [source.name for source in config.data.sources or ()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        yield ConfigProblem(
            path="data.sources",
            rule="must have distinct names, as each names a loss curve",
            value=f"{', '.join(twice)} twice",
            cure="give each source a name",
        )


def _splits(config: RunConfig) -> Iterator[ConfigProblem]:
    data = config.data
    trained_on = [data.path, *(source.path for source in data.sources or ())]
    apart = data.heldout_path is not None and data.heldout_path not in trained_on
    if data.heldout_split == data.train_split and not apart:
        yield ConfigProblem(
            path="data.heldout_split",
            rule="must differ from data.train_split: a loss on training text is not a held-out loss",
            value=repr(data.heldout_split),
            cure="choose another split of the manifest",
        )


def _vocabulary(config: RunConfig) -> Iterator[ConfigProblem]:
    """Require the facts about the tokenizer that formats without a manifest do not hold."""
    data = config.data
    bare = [kind for kind in (data.format, data.heldout_format) if kind != "webdataset"]
    if bare and data.eod_id is None:
        yield ConfigProblem(
            path="data.eod_id",
            rule=f"must be given for format {bare[0]}, which does not store the end-of-document token",
            value="not given",
            cure="take it from the tokenizer (0 for Pythia's)",
        )
    if bare and config.model.vocab_size is None:
        yield ConfigProblem(
            path="model.vocab_size",
            rule=f"must be given for format {bare[0]}, which does not store the size of the vocabulary",
            value="not given",
            cure="take it from the tokenizer (50277 for Pythia's)",
        )
    if not bare and data.eod_id is not None:
        yield ConfigProblem(
            path="data.eod_id",
            rule="must not be given for format webdataset, whose manifest holds it",
            value=str(data.eod_id),
            cure="remove it",
        )


def _eod_in_vocabulary(config: RunConfig) -> Iterator[ConfigProblem]:
    eod_id, size = config.data.eod_id, config.model.vocab_size
    if eod_id is not None and size is not None and eod_id >= size:
        yield ConfigProblem(
            path="data.eod_id",
            rule=f"must be below model.vocab_size ({size})",
            value=str(eod_id),
            cure="take both from the tokenizer",
        )


def _token_type(config: RunConfig) -> Iterator[ConfigProblem]:
    data = config.data
    if data.token_type is not None and "rows" not in (data.format, data.heldout_format):
        yield ConfigProblem(
            path="data.token_type",
            rule=f"must not be given for format {data.format}, whose files store it",
            value=data.token_type,
            cure="remove it",
        )


DATA_RULES = (_place, _source_names, _splits, _vocabulary, _eod_in_vocabulary, _token_type)

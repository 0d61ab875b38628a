"""Whether what a run reads is there and fits it: data, vocabulary, initial weights. Needs no torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.manifest import ShardManifest, load_manifest
from pipeline.checkpoint.folder import CONVERTED_SOURCE, iterations_in
from pipeline.checkpoint.tracker import resolve_checkpoint
from pipeline.config.errors import ConfigError, ConfigProblem
from pipeline.config.schema import RunConfig
from pipeline.metrics.tracking import missing_packages
from pipeline.shared.errors import CheckpointError, DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class _Split:
    """A split that a run reads, and the setting that names its place."""

    setting: str
    path: Path
    split: str
    format: str


def check_inputs(config: RunConfig) -> None:
    """Check that what a run reads is there and fits it, and that the packages of its sinks are installed.

    Raises:
        ConfigError: with all problems.
    """
    problems = [*input_problems(config), *missing_packages(config)]
    if problems:
        raise ConfigError(problems)


def input_problems(config: RunConfig, *, expects_data: bool = True) -> list[ConfigProblem]:
    """Return every problem of what a run reads.

    Args:
        config: of the run, valid in itself.
        expects_data: False where the data are made before the run starts.
    """
    return [*(_data_problems(config) if expects_data else ()), *_weights_problems(config)]


def _data_problems(config: RunConfig) -> Iterator[ConfigProblem]:
    manifests: dict[Path, ShardManifest] = {}
    reported = set()
    for place in _splits(config):
        finding = _finding(place, manifests)
        # A folder that cannot be read has neither split.
        if finding is not None and (place.path, finding) not in reported:
            reported.add((place.path, finding))
            yield ConfigProblem(
                path=place.setting,
                rule=f"must hold the whole split {place.split}",
                value=finding,
                cure="prepare it first (megaponder data prepare), where every rank can read it",
            )
    yield from _vocabulary_problems(config, manifests)


def _splits(config: RunConfig) -> Iterator[_Split]:
    data = config.data
    setting = "data.path" if data.sources is None else "data.sources"
    for path in data.training_paths:
        yield _Split(setting=setting, path=path, split=data.train_split, format=data.format)
    if data.heldout_path is not None:
        yield _Split(
            setting="data.heldout_path",
            path=data.heldout_path,
            split=data.heldout_split,
            format=data.heldout_format,
        )
        return
    for path in data.training_paths:
        yield _Split(setting=setting, path=path, split=data.heldout_split, format=data.format)


def _finding(place: _Split, manifests: dict[Path, ShardManifest]) -> str | None:
    """Return what is found in place of a split, if it is not complete."""
    path = place.path
    if place.format != "webdataset":
        is_there = path.exists() or path.with_name(f"{path.name}.idx").exists()
        return None if is_there else f"{path}, which does not exist"
    try:
        manifest = manifests.setdefault(path, load_manifest(path))
        shards = manifest.split_shards(place.split)
    except DataError as error:
        return f"not ({error})"
    missing = [shard.name for shard in shards if not (path / shard.name).exists()]
    return f"{path}, where {missing[0]} is missing" if missing else None


def _vocabulary_problems(config: RunConfig, manifests: dict[Path, ShardManifest]) -> Iterator[ConfigProblem]:
    tokenizers = {path: manifest.header.tokenizer for path, manifest in manifests.items()}
    trained = {path: tokenizers[path] for path in config.data.training_paths if path in tokenizers}
    given = config.model.vocab_size
    needed = max((tokenizer.vocab_size for tokenizer in tokenizers.values()), default=0)
    if given is not None and given < needed:
        yield ConfigProblem(
            path="model.vocab_size",
            rule=f"must be at least {needed}, the ids of the tokenizer of the data",
            value=str(given),
            cure=f"set it to {needed} or leave it out",
        )
    if len({(tokenizer.sha256, tokenizer.eod_id) for tokenizer in trained.values()}) > 1:
        yield ConfigProblem(
            path="data.sources",
            rule="must be of one tokenizer",
            value=", ".join(f"{path} of {tokenizer.sha256[:12]}" for path, tokenizer in trained.items()),
            cure="prepare them with the same one",
        )


def _weights_problems(config: RunConfig) -> Iterator[ConfigProblem]:
    start = config.init_from
    resumes = config.checkpoint.resume and iterations_in(config.checkpoint_directory)
    if start.path is None or resumes:
        return
    finding = None
    if start.format == "hf":
        if (config.output_dir / CONVERTED_SOURCE).exists():
            # An earlier start has converted it, and the source may be gone.
            return
        finding = (
            None if (start.path / "config.json").is_file() else f"{start.path}, which has no config.json"
        )
    else:
        try:
            resolve_checkpoint(start.path, iteration=start.iteration)
        except CheckpointError as error:
            finding = f"not ({error})"
    if finding is not None:
        yield ConfigProblem(
            path="init_from.path",
            rule="must hold the model that the run starts from",
            value=finding,
            cure="convert or copy it first, where every rank can read it",
        )

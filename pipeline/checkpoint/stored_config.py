"""The settings of a run that was trained elsewhere, as they hold for its checkpoints here.

A stored configuration has the paths that its run was started with. Relative ones refer to the folder in which
it was started, and that folder may have been moved or copied as a whole since.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoint.folder import CHECKPOINTS, CONFIG_NAME
from pipeline.checkpoint.identity import RunIdentity, read_identity
from pipeline.config.load import load_config
from pipeline.config.schema import DataConfig, RunConfig
from pipeline.shared.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRun:
    """The settings of a run, with paths that hold here.

    Attributes:
        config: the settings. ``output_dir`` is where results about the checkpoint go: the folder of its run,
            or for one that lies elsewhere, such as a copy or a mean, the folder that it is in.
        identity: what it belongs to; None for checkpoints that do not tell.
        given: the paths of the data as they were stored, by the path that is looked at now.
        bases: folders to which relative paths may refer, the most likely first.
    """

    config: RunConfig
    identity: RunIdentity | None
    given: dict[Path, Path]
    bases: tuple[Path, ...]

    def check_data_exists(self) -> None:
        """Check that there is something where the data of the run must be.

        Raises:
            DataError: there is not.
        """
        for path in _data_paths(self.config.data):
            if not _exists(path):
                stored = self.given.get(path, path)
                relative = "" if stored.is_absolute() else f", {stored} relative to {self.bases[0]}"
                raise DataError(
                    f"{path} must hold the data of the run, but does not exist; it is what the run stored"
                    f"{relative}; name another place with --data FOLDER"
                )


def stored_checkpoint(folder: Path, overrides: Sequence[str] = (), *, data: Path | None = None) -> StoredRun:
    """Return the settings of the run of a checkpoint.

    Args:
        folder: ``iter_`` folder.
        overrides: ``group.key=value``.
        data: folder of the data to use in place of the run's own.
    Raises:
        CheckpointError, ConfigError: they cannot be read.
    """
    config, identity = load_config(folder / CONFIG_NAME, overrides), read_identity(folder)
    directory = folder.resolve().parent
    own = _own_run(directory, config, identity)
    bases = _bases(own or directory, config, identity)
    stored = _resolved(config, identity, bases, data=data)
    changes = {"output_dir": own or directory, "checkpoint": _in(config, directory)}
    return StoredRun(
        config=stored.config.model_copy(update=changes),
        identity=identity,
        given=stored.given,
        bases=bases,
    )


def stored_run(folder: Path) -> StoredRun:
    """Return the settings of a run from its folder.

    Raises:
        ConfigError: they cannot be read.
    """
    config, identity = load_config(folder / CONFIG_NAME), read_identity(folder)
    here = folder.resolve()
    bases = _bases(here, config, identity)
    stored = _resolved(config, identity, bases, data=None)
    directory = here / CHECKPOINTS
    if config.checkpoint.directory is not None:
        directory = _first(config.checkpoint.directory, bases, _exists)
    changes = {"output_dir": folder, "checkpoint": _in(config, directory)}
    return StoredRun(
        config=stored.config.model_copy(update=changes), identity=identity, given=stored.given, bases=bases
    )


def _in(config: RunConfig, directory: Path) -> object:
    return config.checkpoint.model_copy(update={"directory": directory})


def _own_run(directory: Path, config: RunConfig, identity: RunIdentity | None) -> Path | None:
    """Return the folder of the run whose checkpoints are in a directory; None where they are elsewhere."""
    parent = directory.parent
    if directory.name == CHECKPOINTS and (parent / CONFIG_NAME).is_file():
        return parent
    if config.checkpoint.directory is None or not (config.output_dir.is_absolute() or identity):
        return None
    # A run may be told to save outside of its folder.
    started = Path((identity.working_directory if identity else None) or "/")
    saved, output = (started / path for path in (config.checkpoint.directory, config.output_dir))
    return output if saved.resolve() == directory and output.is_dir() else None


def _bases(run: Path, config: RunConfig, identity: RunIdentity | None) -> tuple[Path, ...]:
    """Return the folders that relative paths may refer to.

    Args:
        run: folder of the run, in full.
        config: its settings.
        identity: what they belong to.
    """
    found: list[Path] = []
    if identity is not None and identity.working_directory and identity.output_dir:
        started, output = Path(identity.working_directory), Path(identity.output_dir)
        if output.is_relative_to(started):
            found += _without(run, output.relative_to(started))
        found.append(started)
    if not config.output_dir.is_absolute():
        found += _without(run, config.output_dir)
    if identity is None or not identity.working_directory:
        found.append(Path.cwd())
    return tuple(dict.fromkeys(found))


def _without(path: Path, ending: Path) -> Iterator[Path]:
    """Yield a path without its ending, if it ends so."""
    parts = [part for part in ending.parts if part != "."]
    if ".." not in parts and list(path.parts[len(path.parts) - len(parts) :]) == parts:
        yield Path(*path.parts[: len(path.parts) - len(parts)])


def _resolved(
    config: RunConfig, identity: RunIdentity | None, bases: tuple[Path, ...], *, data: Path | None
) -> StoredRun:
    given: dict[Path, Path] = {}

    def place(path: Path | None) -> Path | None:
        if path is None:
            return None
        found = _first(_moved(path, identity, bases), bases, _exists)
        given[found] = path
        return found

    section = config.data
    if data is not None:
        changed = section.model_copy(update={"path": data, "sources": None, "heldout_path": None})
    else:
        sources = section.sources and tuple(
            source.model_copy(update={"path": place(source.path)}) for source in section.sources
        )
        changed = section.model_copy(
            update={
                "path": place(section.path),
                "sources": sources,
                "heldout_path": place(section.heldout_path),
            }
        )
    start = config.init_from.model_copy(update={"path": place(config.init_from.path)})
    settled = config.model_copy(update={"data": changed, "init_from": start})
    return StoredRun(config=settled, identity=identity, given=given, bases=bases)


def _moved(path: Path, identity: RunIdentity | None, bases: tuple[Path, ...]) -> Path:
    """Return a full path within a project that is elsewhere now as a relative one."""
    started = Path(identity.working_directory) if identity and identity.working_directory else None
    if not path.is_absolute() or _exists(path) or started is None or not path.is_relative_to(started):
        return path
    relative = path.relative_to(started)
    return relative if any(_exists(base / relative) for base in bases) else path


def _first(path: Path, bases: Sequence[Path], fits: Callable[[Path], bool]) -> Path:
    """Return the first place of a relative path that fits, else the most likely one."""
    if path.is_absolute():
        return path
    places = [base / path for base in bases]
    return next((one for one in places if fits(one)), places[0])


def _exists(path: Path) -> bool:
    # The prefix of a pair is no file itself.
    return path.exists() or path.with_name(f"{path.name}.idx").exists()


def _data_paths(data: DataConfig) -> Iterator[Path]:
    yield from data.training_paths
    if data.heldout_path is not None:
        yield data.heldout_path

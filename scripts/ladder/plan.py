"""What a ladder consists of: a YAML file of rows, and the runs that follow from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.shared.errors import DataError

_Setting = str | int | float | bool | list[Any]
_LearningRates = Annotated[tuple[float, ...], Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Row(_Strict):
    """One line of the tables: a method with its settings.

    Attributes:
        settings: by their dotted names, on top of those of the part.
        learning_rates: candidates instead of the part's.
        learning_rate_of: an earlier row of the part, whose chosen rate this one takes; for variants of one
            method.
        seeds: instead of the ladder's.
    """

    settings: dict[str, _Setting] = {}
    learning_rates: _LearningRates | None = None
    learning_rate_of: str | None = None
    seeds: tuple[int, ...] | None = None


class Part(_Strict):
    """Rows that train for the same number of iterations.

    Attributes:
        iterations: of every run.
        learning_rates: candidates; the best on the tuning seed is taken for the reported seeds.
        settings: of all rows.
        rows: by name, in the order in which they run.
    """

    iterations: Annotated[int, Field(ge=1)]
    learning_rates: _LearningRates
    settings: dict[str, _Setting] = {}
    rows: dict[str, Row]

    @model_validator(mode="after")
    def _check_rates(self) -> Self:
        earlier: set[str] = set()
        for name, row in self.rows.items():
            other = row.learning_rate_of
            if other is not None and other not in earlier:
                raise ValueError(
                    f"`{name}.learning_rate_of` must name an earlier row of the part, not `{other}`"
                )
            if other is not None and row.learning_rates is not None:
                raise ValueError(f"`{name}` must have `learning_rates` or `learning_rate_of`, not both")
            earlier.add(name)
        return self


class Ladder(_Strict):
    """A whole ladder.

    Attributes:
        recipe: run configuration of all runs, relative to the file.
        runs: name of the folder of the runs; default: the file's name. Ladders of one recipe may share it:
            runs with equal settings are trained once.
        tuning_seed: learning rates are chosen on it; it is not reported.
        seeds: of the reported runs.
        base: trained once per seed; has one row, from which the rows of ``continued`` start. None where a
            checkpoint is given instead.
        base_method: method of the base.
        continued: rows that start from the base of their seed.
        scratch: rows that start from random weights.
    """

    recipe: str
    runs: Annotated[str, Field(pattern=r"^\w[\w.-]*$")] | None = None
    tuning_seed: int
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    base: Part | None = None
    base_method: str
    continued: Part | None = None
    scratch: Part | None = None

    def part(self, name: str) -> Part:
        """Return a part by its name.

        Raises:
            DataError: this ladder has no such part.
        """
        part: Part | None = getattr(self, name)
        if part is None:
            raise DataError(f"the ladder must have a part `{name}`, but has none; name another part")
        return part

    def part_names(self) -> list[str]:
        """Return the parts that this ladder has, without the base."""
        return [name for name in ("continued", "scratch") if getattr(self, name) is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training.

    Attributes:
        folder: relative to the ladder's folder; tells part, row, learning rate and seed.
        settings: by their dotted names.
    """

    folder: Path
    settings: Mapping[str, _Setting]

    def overrides(self) -> list[str]:
        """Return the settings as words of a command line."""
        return [f"{key}={_render(value)}" for key, value in self.settings.items()]


def load_ladder(path: Path) -> Ladder:
    """Read a ladder. One that is ``like`` another file beside it has what it does not set from there.

    Raises:
        DataError: with every problem of the file.
    """
    try:
        settings = _read(path)
        other = settings.pop("like", None) if isinstance(settings, dict) else None
        if isinstance(other, str):
            settings = _over(_read(path.parent / other), settings)
        return Ladder.model_validate(settings)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()
        )
        raise DataError(f"{path} is not a ladder: {problems}") from error


def _over(below: Any, above: Any) -> Any:
    """Return a mapping with the entries of another over it, at every depth."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {key: _over(below.get(key), value) for key, value in above.items()}


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path} must be a YAML file of a ladder: {error}") from error


def run_of(part_name: str, part: Part, row_name: str, *, learning_rate: float, seed: int) -> Run:
    """Return the run of a row at one learning rate and seed, without the checkpoint it starts from."""
    row = part.rows[row_name]
    return Run(
        folder=Path(part_name) / row_name / f"lr-{learning_rate:g}" / f"seed-{seed}",
        settings={
            "name": f"{row_name}-{seed}",
            "seed": seed,
            "training.train_iters": part.iterations,
            "optimizer.lr": learning_rate,
            "optimizer.min_lr": learning_rate / 10,
            **part.settings,
            **row.settings,
        },
    )


def _render(value: _Setting) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()

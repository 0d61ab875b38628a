"""Building blocks of every group of settings: strict types, and the frozen base class."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializationInfo,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from pipeline.shared.paths import UnknownNameError, expand_path


def _expanded(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if not value or "\0" in value:
        raise PydanticCustomError("path_syntax", "must be the path of a file or folder")
    try:
        return expand_path(value)
    except UnknownNameError as error:
        raise PydanticCustomError("path_name", "{reason}", {"reason": str(error)}) from None


# A path, or text that may be one; `~` and variables are expanded.
FilePath = Annotated[Path, BeforeValidator(_expanded)]
PathText = Annotated[str, BeforeValidator(_expanded)]

# Far above what any run needs, and below where products and conversions of counts overflow or take for ever.
LARGEST_COUNT = 10**15
Count = Annotated[int, Field(strict=True, ge=1, le=LARGEST_COUNT)]
CountOrZero = Annotated[int, Field(strict=True, ge=0, le=LARGEST_COUNT)]
# Of what is made one by one for each: ranks, layers, heads.
Few = Annotated[int, Field(strict=True, ge=1, le=100_000)]
# Of passes through all layers in one step.
Passes = Annotated[int, Field(strict=True, ge=0, le=1000)]


def _all_or_count(value: Any) -> Any:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if value == "all" or is_count:
        return value
    raise PydanticCustomError("all_or_count", "must be all or a whole number of at least 1")


# How many of something, or all there are.
AllOrCount = Annotated[int | Literal["all"], BeforeValidator(_all_or_count)]
NonNegative = Annotated[float, Field(strict=True, ge=0)]
Positive = Annotated[float, Field(strict=True, gt=0)]
Fraction = Annotated[float, Field(strict=True, ge=0, le=1)]
Share = Annotated[float, Field(strict=True, gt=0, le=1)]
BelowOne = Annotated[float, Field(strict=True, ge=0, lt=1)]
Switch = Annotated[bool, Field(strict=True)]
# Of a cluster: SLURM reads quotes, a backslash and # as part of its own grammar.
QueueName = Annotated[str, Field(min_length=1, pattern=r"^[^\s\p{Cc}\"'\\#$`;&|<>()]+$")]
# In the context of a serialization: secrets are not masked.
SHOW_SECRETS = "show_secrets"
# Two numbers that belong together: the ends of a range, or an iteration and the passes from there on.
Pair = tuple[CountOrZero, CountOrZero]
PassRange = tuple[Passes, Passes]
PassesFrom = tuple[CountOrZero, Passes]


def shows_secrets(info: SerializationInfo) -> bool:
    """Return whether settings are written with their secrets, for the job that needs them."""
    return isinstance(info.context, dict) and bool(info.context.get(SHOW_SECRETS))


class Section(BaseModel):
    """A group of settings: frozen, without unknown keys; `null` means "not given"."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_absent(cls, data: Any) -> Any:
        """Give a setting that is null its default."""
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if value is not None or key not in cls.model_fields}

    @field_validator("*", mode="after")
    @classmethod
    def _record_valid(cls, value: Any, info: ValidationInfo) -> Any:
        """Record a valid setting: rules on it are still checked when another setting is invalid."""
        if isinstance(info.context, dict) and info.field_name is not None:
            info.context.setdefault(cls, {})[info.field_name] = value
        return value

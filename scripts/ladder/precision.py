"""The precision in which this machine runs a ladder."""

import logging
from pathlib import Path

import yaml

from megatron_ext.device import computes_bf16
from pipeline.shared.errors import DataError

logger = logging.getLogger(__name__)

_SETTING = "training.precision"


def precision_settings(recipe: Path) -> dict[str, str]:
    """Return the settings of all runs that follow from this machine: fp32 where it has no bf16.

    Args:
        recipe: of the runs.
    Raises:
        DataError: the recipe cannot be read.
    """
    try:
        settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        is_bf16 = settings["training"].get("precision") == "bf16"
    except (OSError, UnicodeDecodeError, yaml.YAMLError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{recipe} must be a recipe with a section `training`, but: {error}; correct it"
        ) from error
    if not is_bf16 or computes_bf16():
        return {}
    logger.info("this CPU has no instructions for bf16: %s is fp32 instead", _SETTING)
    return {_SETTING: "fp32"}

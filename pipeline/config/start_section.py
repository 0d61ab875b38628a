"""What a run starts from: the settings of `init_from`."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from megatron_ext.ponder.config import Method
from pipeline.config.section import Count, CountOrZero, Section, Switch


class InitFromSection(Section):
    """Whose weights a run starts from while it has no checkpoint of its own."""

    path: Path | None = Field(
        None,
        description="checkpoint folder of another run, or one iter_ folder; weights alone are taken: "
        "optimizer, schedule and order of the data start from scratch. Default: random initial weights",
    )
    format: Literal["native", "hf"] = Field(
        "native",
        description="native: checkpoints of this program; hf: a folder of Hugging Face, which the run's "
        "first start converts into output_dir/init_from",
    )
    iteration: CountOrZero | None = Field(None, description="which checkpoint; default: the newest")
    method: Method | None = Field(
        None, description="the method that model has, which must be this run's or one it can start from"
    )
    allow_unused: Switch = Field(False, description="ignore weights that this run's model does not have")
    ignore: tuple[str, ...] = Field(
        (), description="format hf: keys of its config.json that mean nothing for the weights"
    )
    convert_timeout_seconds: Count = Field(
        7200, description="format hf: how long the conversion may take, while all other ranks wait"
    )

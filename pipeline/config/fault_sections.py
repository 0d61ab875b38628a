"""Settings of what a run does when something goes wrong."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import Count, Section


class DivergenceConfig(Section):
    """What happens at a loss or gradient that is not finite, and at a loss that jumps."""

    on_nonfinite: Literal["skip", "stop"] = Field(
        "skip",
        description="leave the step's update out and count it, or stop with exit code 93; "
        "its samples are consumed either way",
    )
    spike_factor: Annotated[float, Field(strict=True, gt=1)] | None = Field(
        None,
        description="a loss above this times the median of the last spike_window losses is a spike; "
        "default: spikes are not looked for",
    )
    spike_window: Count = Field(64, description="losses the median is taken of; none is a spike before")
    on_spike: Literal["skip", "stop"] = "skip"
    max_in_a_row: Count = Field(5, description="steps left out in a row at which the run stops after all")

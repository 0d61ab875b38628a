"""The parallel layout of a run: ranks, layers and other modules of each pipeline stage.

Apart from the summary because it looks at the built model, while the summary loads no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.distributed
from rich.box import SIMPLE_HEAD

from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from pipeline.config.schema import ParallelConfig, RunConfig
from pipeline.shared.tables import Table

# The ranks of a larger stage are shown as a range.
MOST_RANKS_WRITTEN = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class StageParts:
    """What a pipeline stage holds.

    Attributes:
        first_layer: number of its first layer, counted from 0 through all stages.
        num_layers: number of its layers.
        modules: what it holds beside layers.
        parameters: on each of its tensor-parallel ranks, which hold equally many.
    """

    first_layer: int
    num_layers: int
    modules: tuple[str, ...]
    parameters: int


def stages_of(module: PonderModel, groups: ParallelGroups) -> list[StageParts]:
    """Return what every stage holds; a collective call."""
    stages: list[StageParts] = [parts_of(module)] * groups.pp_size
    torch.distributed.all_gather_object(stages, parts_of(module), group=groups.pp)
    return stages


def parts_of(module: PonderModel) -> StageParts:
    """Return what the stage of this rank holds."""
    config = module.config
    head = "head"
    if config.tie_embeddings:
        head = "head (the embedding)" if module.pre_process else "head (a copy of the embedding)"
    held = {
        "embedding": module.pre_process,
        "a copy of the embedding for mixtures": hasattr(module, "mixture_embedding"),
        "final norm": module.post_process,
        head: module.post_process,
    }
    decider = config.ponder.method.facts.decider
    if decider is not None:
        held[decider.name] = hasattr(module.ponder, decider.name)
    return StageParts(
        first_layer=config.layer_offset,
        num_layers=config.num_stage_layers,
        modules=tuple(name for name, is_held in held.items() if is_held),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
    )


def render_layout(config: RunConfig, stages: Sequence[StageParts]) -> Table:
    """Return a table of the rank grid, what each pipeline stage holds, and how gradients are reduced."""
    table = Table(
        box=SIMPLE_HEAD,
        title="parallel layout",
        title_justify="left",
        title_style="bold",
        caption=f"gradients: {gradient_reduction(config)}",
        caption_justify="left",
    )
    table.add_column("stage", justify="right")
    table.add_column(_ranks_title(config.parallel))
    table.add_column("layers")
    table.add_column("also holds")
    table.add_column("parameters per rank", justify="right")
    for number, stage in enumerate(stages):
        last = stage.first_layer + stage.num_layers - 1
        layers = str(last) if stage.num_layers == 1 else f"{stage.first_layer} to {last}"
        table.add_row(
            str(number),
            stage_ranks(config.parallel, number),
            layers,
            ", ".join(stage.modules),
            f"{stage.parameters:,}",
        )
    return table


def stage_ranks(parallel: ParallelConfig, stage: int) -> str:
    """Format the ranks of a stage: tensor-parallel ones side by side, bars between the others.

    Ranks that share sequences are neighbours; those of a data-parallel copy follow.
    """
    size = parallel.world_size // parallel.pipeline
    first = stage * size
    if size > MOST_RANKS_WRITTEN:
        return f"{first} to {first + size - 1}"
    starts = range(first, first + size, parallel.tensor)
    return " | ".join(" ".join(map(str, range(start, start + parallel.tensor))) for start in starts)


def gradient_reduction(config: RunConfig) -> str:
    """Describe when gradients are summed over the copies of the model, and why not earlier."""
    ponder, parallel = config.ponder, config.parallel
    if parallel.overlap_grad_reduce:
        return "reduced during backward, as each weight gets its gradient in one piece"
    has_passes = ponder.num_latent_thoughts > 0 and not ponder.method.has_one_pass
    reasons = {
        "weights are used in several passes": has_passes
        and (parallel.pipeline > 1 or parallel.recomputes_layers),
        "weights are frozen at first": ponder.freeze_backbone_tokens > 0,
    }
    found = " and ".join(reason for reason, holds in reasons.items() if holds)
    once = "reduced once, after the last backward"
    return f"{once}, because {found}" if found else f"{once}; parallel.overlap_grad_reduce is false"


def _ranks_title(parallel: ParallelConfig) -> str:
    """Name the axes within a stage."""
    axes = {"tensor": parallel.tensor, "context": parallel.context, "data": parallel.data}
    split = [name for name, size in axes.items() if size > 1]
    return f"ranks ({' | '.join(split)})" if split else "ranks"

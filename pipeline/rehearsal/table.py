"""A rehearsal as tables for a console, and as plain values."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group

from pipeline.cost.peaks import GIB, MIB, Device
from pipeline.cost.plan import stage_values
from pipeline.rehearsal.rehearse import Rehearsal
from pipeline.rehearsal.stand_ins import FLASH_TEMPLATES
from pipeline.shared.tables import Table
from pipeline.shared.units import metric, render_bytes


def rehearsal_values(result: Rehearsal, device: Device, available_bytes: float) -> Mapping[str, Any]:
    """Return a rehearsal as plain values for JSON, with the plan of its stage.

    Args:
        result: of one rank.
        device: that the rank is meant for.
        available_bytes: of its memory, for tensors.
    """
    values = asdict(result)
    values["planned"] = stage_values(result.planned)
    return {
        **values,
        "device": device.name,
        "available_bytes": round(available_bytes),
        "fits": result.peak_bytes <= available_bytes,
        "plan_error": result.plan_error,
    }


def render_rehearsal(result: Rehearsal, name: str, device: Device, available_bytes: float) -> Group:
    """Return the tables of one rank.

    Args:
        result: of the rank.
        name: of the run.
        device, available_bytes: see :func:`rehearsal_values`.
    """
    tables = [_summary(result, name, device, available_bytes), _memory(result)]
    if result.collectives:
        tables.append(_collectives(result))
    tables.append(_places("host waits for the device", result.waits))
    if result.mixed:
        tables.append(_places("TENSORS OF TWO DEVICES", result.mixed))
    return Group(*tables)


def _summary(result: Rehearsal, name: str, device: Device, available_bytes: float) -> Table:
    table = Table(
        title=f"{name}: rank {result.rank} ({result.coordinates})",
        box=SIMPLE_HEAD,
        show_header=False,
        title_justify="left",
        title_style="bold",
    )
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    fits = result.peak_bytes <= available_bytes
    table.add_row(
        "verdict",
        f"{'fits' if fits else 'DOES NOT FIT'}: {result.peak_bytes / GIB:.2f} of {available_bytes / GIB:.1f} "
        f"GiB that a {device.name} has for tensors",
    )
    table.add_row(
        "plan",
        f"{result.planned.peak / GIB:.2f} GiB ({result.plan_error:+.1%})",
    )
    table.add_row(
        "micro-batches", f"{result.num_micro_batches}, of which {result.rehearsed_micro_batches} were run"
    )
    table.add_row("FLOPs", f"{metric(result.flops)} in products and attention")
    moved = render_bytes(result.moved_bytes)
    table.add_row("kernels", f"about {result.kernels:,}; but for products and attention they move {moved}")
    if result.messages:
        table.add_row(
            "between stages",
            f"{result.messages:,} messages, {render_bytes(result.sent_bytes)} sent, "
            f"{render_bytes(result.received_bytes)} received",
        )
    for call in result.attention:
        template = next((size for size in FLASH_TEMPLATES if call.head_size <= size), call.head_size)
        computed = f", computed in {template} channels" if call.kernel == "flash" else ""
        extras = ", grouped heads" * call.is_grouped + ", mask" * call.has_mask
        table.add_row(
            "attention", f"{call.calls:,} x {call.kernel}, heads of {call.head_size}{computed}{extras}"
        )
    return table


def _memory(result: Rehearsal) -> Table:
    table = Table(title="GiB at the peak, by what made the tensors", box=SIMPLE_HEAD, title_justify="left")
    table.add_column("part", style="cyan")
    table.add_column("GiB", justify="right")
    for name, size in sorted(result.parts.items(), key=lambda item: -item[1]):
        if size >= MIB:
            table.add_row(name, f"{size / GIB:.3f}")
    table.add_row("between steps", f"{result.state_bytes / GIB:.3f}")
    table.add_row("between steps, planned", f"{result.planned.between_steps / GIB:.3f}")
    return table


def _collectives(result: Rehearsal) -> Table:
    table = Table(title="collectives of a step", box=SIMPLE_HEAD, title_justify="left")
    for column in ("phase", "operation", "group"):
        table.add_column(column, style="cyan")
    table.add_column("calls", justify="right")
    table.add_column("MiB", justify="right")
    for entry in sorted(result.collectives, key=lambda found: -found.num_bytes):
        table.add_row(
            entry.phase, entry.operation, entry.group, f"{entry.calls:,}", f"{entry.num_bytes / MIB:,.3f}"
        )
    return table


def _places(title: str, places: tuple[Any, ...]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    table.add_column("what", style="cyan")
    table.add_column("where", overflow="fold")
    table.add_column("calls", justify="right")
    for place in places:
        table.add_row(place.what, place.where, f"{place.calls:,}")
    return table

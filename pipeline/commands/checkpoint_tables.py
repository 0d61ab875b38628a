"""Output of `megaponder checkpoint`, as rows for JSON and as tables."""

from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD

from pipeline.checkpoint.inventory import Entry
from pipeline.checkpoint.state import TrainState
from pipeline.shared.tables import Table
from pipeline.shared.units import render_bytes

if TYPE_CHECKING:
    from pipeline.checkpoint.comparison import TensorComparison
    from pipeline.checkpoint.description import Description
    from pipeline.checkpoint.identity import RunIdentity

Row = dict[str, Any]


def inventory_rows(entries: Sequence[Entry]) -> list[Row]:
    """Return one row per checkpoint."""
    return [
        {
            "iteration": entry.iteration,
            "folder": str(entry.folder),
            "bytes": entry.num_bytes,
            "is_whole": not entry.damage,
            "damage": [asdict(item) for item in entry.damage],
            "is_tracked": entry.is_tracked,
            "state": None if entry.state is None else asdict(entry.state),
        }
        for entry in entries
    ]


def inventory_table(entries: Sequence[Entry], *, title: str) -> Table:
    """Return the table of the checkpoints in a folder."""
    table = Table(title=title, box=SIMPLE_HEAD, optional=("tokens", "best held-out loss"))
    for name in ("iteration", "size", "tokens", "best held-out loss"):
        table.add_column(name, justify="right")
    table.add_column("files")
    table.add_column("tracker")
    for entry in entries:
        state = entry.state
        table.add_row(
            f"{entry.iteration}",
            render_bytes(entry.num_bytes),
            "?" if state is None else f"{state.consumed_tokens:,}",
            "" if state is None else _best(state),
            f"DAMAGED: {entry.damage[0]}" if entry.damage else _kind(state),
            "latest" if entry.is_tracked else "",
        )
    return table


def state_table(folder: Path, state: TrainState) -> Table:
    """Return the table of a run's progress."""
    table = Table(title=str(folder), box=SIMPLE_HEAD, show_header=False)
    for name, value in asdict(state).items():
        if value not in (None, {}, ()):
            table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
    return table


def identity_table(identity: "RunIdentity") -> Table:
    """Return the table of what a checkpoint belongs to."""
    table = Table(title="belongs to", box=SIMPLE_HEAD, show_header=False)
    origin = identity.origin
    for name, value in (
        ("tokenizer", identity.tokenizer),
        ("vocabulary", identity.vocab_size),
        *(("data", part) for part in identity.data or ()),
        ("order", f"{identity.order}, seed {identity.seed}"),
        ("iteration", f"{identity.batch_size:,} rows of {identity.row_length:,} tokens"),
        ("saved", identity.saved_at),
        ("program", None if origin is None else origin.program),
        ("machine", None if origin is None else origin.machine),
        *(
            (f"changed at {change.iteration}", f"{change.name}: from {change.before} to {change.after}")
            for change in identity.changes
        ),
    ):
        table.add_row(name, "?" if value is None else str(value))
    return table


def tensor_rows(description: "Description", *, pattern: str) -> list[Row]:
    """Return one row per tensor whose name matches."""
    return [
        {
            "name": name,
            "shape": list(entry.shape),
            "dtype": entry.dtype,
            "bytes": entry.num_bytes,
            "chunks": len(entry.parts),
        }
        for name, entry in description.tensors.items()
        if fnmatchcase(name, pattern)
    ]


def tensor_table(rows: Sequence[Row]) -> Table:
    """Return the table of a checkpoint's tensors."""
    table = Table(box=SIMPLE_HEAD, show_footer=True)
    table.add_column("tensor", footer=f"{len(rows)} tensors", overflow="fold")
    table.add_column("shape")
    table.add_column("type")
    table.add_column("size", justify="right", footer=render_bytes(sum(row["bytes"] for row in rows)))
    for row in rows:
        table.add_row(
            row["name"], " x ".join(map(str, row["shape"])), row["dtype"], render_bytes(row["bytes"])
        )
    return table


def comparison_table(compared: Sequence["TensorComparison"], first: Path, second: Path) -> Table:
    """Return the table of the tensors that differ between two checkpoints; equal ones are only counted."""
    differing = [item for item in compared if not item.is_equal]
    num_equal = len(compared) - len(differing)
    table = Table(title=f"{first}\n{second}", box=SIMPLE_HEAD, show_footer=True)
    table.add_column("tensor", footer=f"{num_equal} equal, {len(differing)} different", overflow="fold")
    table.add_column("different values", justify="right")
    table.add_column("largest difference", justify="right")
    for item in differing:
        table.add_row(
            item.name,
            item.problem or f"{item.num_different:,}",
            "" if item.problem else f"{item.largest_difference:.3e}",
        )
    return table


def _best(state: TrainState) -> str:
    if state.best_heldout_loss is None:
        return ""
    return f"{state.best_heldout_loss:.4f} (iteration {state.best_heldout_iteration})"


def _kind(state: TrainState | None) -> str:
    if state is not None and state.averaged_iterations:
        return f"complete; mean of {', '.join(map(str, state.averaged_iterations))}"
    return "complete"

"""`megaponder data index`."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.shared import examples, set_up_logging
from pipeline.shared.console import open_bar

EPILOG = examples("megaponder data index runs/data", "megaponder data index /data/web /data/books /data/code")


def index(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Folders of shards; data of other formats need no index."),
    ],
) -> None:
    """Note where the tokens of shards lie, so that no rank of a training has to look for them.

    The index lies in the shards' folder; it is made once for the same shards, and anew for others. Training
    makes it itself where it is missing: one rank does, the others wait.
    """
    from pipeline.data.indexing import index_split, splits_to_index

    set_up_logging()
    for path in paths:
        splits = splits_to_index(path)
        if not splits:
            typer.echo(f"{path}: Megatron's files and rows need no index")
        for split in splits:
            with open_bar() as bar:
                task = bar.add_task(f"indexing {split.name}", total=len(split.shards))
                indexed = index_split(split, on_shard=partial(bar.advance, task))
            how = f"made in {indexed.seconds:.1f} s" if indexed.is_new else "is there already"
            typer.echo(
                f"{path} {split.name}: index of {len(split.shards):,} shards with {indexed.num_tokens:,} "
                f"tokens {how}"
            )

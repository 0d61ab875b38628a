"""`megaponder data`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from data_prep.manifest import DEFAULT_MAX_RECORD_BYTES
from pipeline.commands.shared import examples, set_up_logging
from pipeline.commands.text_source import (
    HeldoutFraction,
    Lines,
    MaxBadFiles,
    MaxRecordBytes,
    PythonStandardLibrary,
    Sources,
    Suffixes,
    TextField,
    choose_source,
)
from pipeline.shared.console import open_console, say
from pipeline.shared.exit_codes import ExitCode
from pipeline.shared.progress import open_bar

app = typer.Typer(
    no_args_is_help=True, help="Turn raw text into token shards; inspect, convert and index them."
)


@app.command(
    epilog=examples(
        "megaponder data prepare corpus/ --tokenizer tokenizer.model --output runs/data",
        "megaponder data prepare 'web/*.jsonl.zst' books.parquet --tokenizer tokenizer.model -o runs/data",
        "megaponder data prepare --python-stdlib --tokenizer tokenizer.model --output runs/data --workers 4",
        "megaponder data prepare corpus/ --tokenizer tokenizer.json -o runs/data --format megatron",
    )
)
def prepare(
    tokenizer: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="sentencepiece model (see megaponder tokenizer train) or Hugging Face tokenizer.json.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for shards and manifest.")
    ],
    source: Sources = None,
    text_field: TextField = "text",
    lines: Lines = False,
    suffix: Suffixes = None,
    python_stdlib: PythonStandardLibrary = False,
    eod_token: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Special token that ends documents, for a tokenizer.json whose folder names no eos_token.",
            show_default=False,
        ),
    ] = None,
    bos_token: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Special token that begins documents.", show_default=False),
    ] = None,
    tokenizer_backend: Annotated[
        Literal["auto", "native", "gigatoken"],
        typer.Option(
            help="What computes the tokens: the tokenizer's own library, or gigatoken, which is faster and "
            "compared with it on samples of every shard. auto: gigatoken if it is installed and supports the "
            "tokenizer."
        ),
    ] = "auto",
    heldout_fraction: HeldoutFraction = 0.05,
    workers: Annotated[
        int, typer.Option(min=0, metavar="N", help="Ray workers; 0 uses this process alone.")
    ] = 2,
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Head of a running Ray cluster, of which this machine is a node, instead of a local Ray. "
            "All machines need this package and the same paths to input and output; it is not stopped.",
            show_default=False,
        ),
    ] = None,
    max_bad_records: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Records without text (damaged JSON, no text in the field, not UTF-8, too large) to skip "
            "and list in rejected.jsonl; one more stops the run.",
        ),
    ] = 100,
    max_bad_files: MaxBadFiles = 0,
    max_record_bytes: MaxRecordBytes = DEFAULT_MAX_RECORD_BYTES,
    stored_as: Annotated[
        Literal["webdataset", "megatron"],
        typer.Option(
            "--format",
            help="webdataset: numbered tars. megatron: one .bin/.idx pair per split, which needs twice the "
            "space until shards are merged.",
        ),
    ] = "webdataset",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace shards that were made from other text or settings.")
    ] = False,
) -> None:
    """Tokenize text into webdataset shards or Megatron pairs, with a manifest.

    A second run makes only the missing shards; those of unchanged input are kept. Workers divide large files
    of JSON lines, lines or parquet rows; a compressed file or a tar is read by one worker. A worker holds the
    bytes of one document in memory, not its tokens.
    """
    from data_prep.manifest import PrepareSettings
    from data_prep.preparation import PrepareRequest
    from data_prep.progress import PrepareProgress
    from data_prep.run import prepare as prepare_shards

    set_up_logging()
    request = PrepareRequest(
        source=choose_source(
            source,
            suffixes=suffix,
            text_field=text_field,
            lines=lines,
            python_stdlib=python_stdlib,
            max_record_bytes=max_record_bytes,
        ),
        output=output,
        tokenizer=tokenizer,
        eod_token=eod_token,
        bos_token=bos_token,
        tokenizer_backend=tokenizer_backend,
        settings=PrepareSettings(heldout_fraction=heldout_fraction),
        workers=workers,
        ray_address=ray_address,
        stored_as=stored_as,
        max_bad_records=max_bad_records,
        max_bad_files=max_bad_files,
        overwrite=overwrite,
    )
    prepare_shards(request, PrepareProgress(open_console(stderr=True)))
    say(f"tokens and manifest are in {output}")


@app.command(
    epilog=examples("megaponder data inspect runs/data", "megaponder data inspect runs/data --verify")
)
def inspect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with manifest.json.")],
    samples: Annotated[
        int, typer.Option(min=0, metavar="N", help="Documents of each split to decode and show.")
    ] = 2,
    verify: Annotated[bool, typer.Option("--verify", help="Compare every shard with its checksum.")] = False,
) -> None:
    """Show the content of a folder of shards; exit code 1 if --verify finds damage."""
    from data_prep.inspection import inspect_shards, render_inspection

    inspection = inspect_shards(folder, num_samples=samples, verify=verify)
    open_console().print(render_inspection(inspection))
    raise typer.Exit(ExitCode.CRASH if inspection.problems else ExitCode.DONE)


@app.command(
    epilog=examples(
        "megaponder data convert runs/data --output runs/pairs --to megatron",
        "megaponder data convert runs/pairs --output runs/data --to webdataset",
    )
)
def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder with manifest.json.")],
    to: Annotated[Literal["webdataset", "megatron"], typer.Option("--to", help="Format to write.")],
    destination: Annotated[Path | None, typer.Argument(hidden=True)] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Empty or absent folder.", show_default=False),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Shards to copy at the same time.")] = 2,
) -> None:
    """Write prepared tokens in the other format; the tokens stay the same, and checksums are compared."""
    # Earlier versions took it as a second argument.
    folder = output or destination
    if folder is None or (output is not None and destination is not None):
        raise typer.BadParameter("must be given once", param_hint="--output")
    from data_prep.conversion import convert as convert_folder

    set_up_logging()
    manifest = convert_folder(source, folder, stored_as=to, num_threads=workers)
    num_tokens = sum(manifest.num_tokens(split) for split in manifest.splits)
    say(f"{num_tokens:,} tokens and their manifest are in {folder}")


@app.command(
    epilog=examples(
        "megaponder data index runs/data", "megaponder data index /data/web /data/books /data/code"
    )
)
def index(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Folders of shards; data of other formats need no index."),
    ],
) -> None:
    """Index the tokens of shards before training.

    The index is stored in the shards' folder and reused until the shards change. Training builds a missing
    index itself: one rank does, and the others wait.
    """
    from pipeline.data.index import index_split, splits_to_index

    set_up_logging()
    for path in paths:
        splits = splits_to_index(path)
        if not splits:
            say(f"{path}: no index needed for Megatron pairs and rows")
        for split in splits:
            with open_bar(f"indexing {split.name}", total=len(split.shards)) as bar:
                indexed = index_split(split, on_shard=bar.advance)
            how = f"built in {indexed.seconds:.1f} s" if indexed.is_new else "exists"
            say(
                f"{path} {split.name}: index of {len(split.shards):,} shards with {indexed.num_tokens:,} "
                f"tokens {how}"
            )

"""`megaponder tokenizer`: train tokenizers."""

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
from pipeline.shared.console import say
from pipeline.shared.folder_lock import output_lock
from pipeline.shared.progress import open_bar

app = typer.Typer(no_args_is_help=True, help="Train tokenizers.")


@app.callback()
def _group() -> None:
    """Keep `train` a subcommand while it is the only one."""


@app.command(
    epilog=examples(
        "megaponder tokenizer train corpus/ --output tokenizer.model --vocab-size 8192",
        "megaponder tokenizer train --python-stdlib --output tokenizer.model --vocab-size 2048",
    )
)
def train(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="sentencepiece model to write.")
    ],
    source: Sources = None,
    text_field: TextField = "text",
    lines: Lines = False,
    suffix: Suffixes = None,
    python_stdlib: PythonStandardLibrary = False,
    vocab_size: Annotated[
        int,
        typer.Option(
            min=259, max=1_000_000, metavar="N", help="Number of pieces, including the 256 single bytes."
        ),
    ] = 4096,
    model_type: Annotated[
        Literal["bpe", "unigram"], typer.Option(help="Algorithm of sentencepiece.")
    ] = "bpe",
    sample_bytes: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="BYTES",
            help="Amount of text to train on, sampled evenly from the documents of all files; of a large "
            "compressed file, from its start. No document takes more than an eighth if there is other text.",
        ),
    ] = 4_000_000,
    heldout_fraction: HeldoutFraction = 0.05,
    max_bad_files: MaxBadFiles = 0,
    max_record_bytes: MaxRecordBytes = DEFAULT_MAX_RECORD_BYTES,
) -> None:
    """Train a sentencepiece tokenizer with byte fallback.

    Held-out documents are not used. An output that was trained on the same text and settings is kept.
    """
    from data_prep.tokenizers.tokenizer_training import TokenizerTraining, train_tokenizer

    set_up_logging()
    with output_lock(output, "megaponder tokenizer train"):
        trained = train_tokenizer(
            TokenizerTraining(
                source=choose_source(
                    source,
                    suffixes=suffix,
                    text_field=text_field,
                    lines=lines,
                    python_stdlib=python_stdlib,
                    max_record_bytes=max_record_bytes,
                ),
                output=output,
                vocab_size=vocab_size,
                model_type=model_type,
                sample_bytes=sample_bytes,
                heldout_fraction=heldout_fraction,
                max_bad_files=max_bad_files,
            ),
            open_bar=lambda total: open_bar("tokenizer", total=total),
        )
    state = "trained" if trained.was_trained else "up to date"
    say(f"{trained.path}: {state}, {trained.vocab_size} pieces from {trained.num_files} files")

"""`megaponder convert`: models from and to Hugging Face folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from megatron_ext.ponder.config import Method
from pipeline.checkpoint.tracker import resolve_checkpoint
from pipeline.commands.shared import Checkpoint, Iteration, examples, set_up_logging
from pipeline.shared.console import say
from pipeline.shared.folder_lock import output_lock

if TYPE_CHECKING:
    from pipeline.conversion.certificate import Certificate

app = typer.Typer(
    no_args_is_help=True,
    help="Convert models from and to Hugging Face folders.",
    epilog=examples(
        "megaponder convert from-hf pythia-2.8b --output runs/pythia",
        "megaponder convert to-hf runs/demo/checkpoints --output exported --no-tokenizer",
    ),
)

Output = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write; must be empty or not exist."),
]
NewSettings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE...",
        help="Settings of the new checkpoint's run: group.key=value, or Megatron's name.",
        show_default=False,
    ),
]
NoTokenizer = Annotated[bool, typer.Option("--no-tokenizer", help="Convert without a tokenizer.")]
Tolerance = Annotated[
    float,
    typer.Option(
        min=0.0,
        metavar="SHARE",
        help="Largest allowed difference of logits, as a share of their root mean square.",
    ),
]
AllowMismatch = Annotated[
    bool,
    typer.Option(
        "--allow-mismatch", help="Write the result even if logits differ by more than the tolerance."
    ),
]


@app.command(
    "from-hf",
    epilog=examples(
        "megaponder convert from-hf pythia-2.8b --output runs/pythia",
        "megaponder convert from-hf pythia-2.8b --output runs/pythia_p3 --method ponderlm3 "
        "ponder.num_latent_thoughts=3 data.path=runs/pile",
    ),
)
def from_hf(
    source: Annotated[
        Path, typer.Argument(metavar="HF_DIR", help="Folder with config.json, weights and tokenizer.")
    ],
    output: Output,
    method: Annotated[
        Method | None,
        typer.Option(help="Method of the new checkpoint; default: that of the source.", show_default=False),
    ] = None,
    settings: NewSettings = None,
    ignored: Annotated[
        list[str] | None,
        typer.Option(
            "--ignore",
            metavar="KEY",
            help="An unknown key of config.json that does not affect the weights; may be repeated.",
            show_default=False,
        ),
    ] = None,
    no_tokenizer: NoTokenizer = False,
    tolerance: Tolerance = 1e-3,
    allow_mismatch: AllowMismatch = False,
) -> None:
    """Convert a GPT-NeoX (Pythia) or Llama model to a checkpoint, for init_from, eval and generate.

    Also reads folders written by `to-hf`, including pondering models, and published PonderLM-2 models. The
    checkpoint loads onto any parallel layout. If the method needs a router or gates that the source does not
    have, they are initialized as at the start of a training.

    Compares the logits with those of transformers (install the extra `hf`). conversion.json in the checkpoint
    reports what was read, written and compared. If any check fails, nothing is written.
    """
    set_up_logging()
    _check_import(source, output, ignored=ignored or (), needs_tokenizer=not no_tokenizer)

    from pipeline.conversion.from_hf import ImportOptions
    from pipeline.conversion.from_hf import from_hf as convert

    options = ImportOptions(
        method=method,
        overrides=settings or (),
        ignored=ignored or (),
        needs_tokenizer=not no_tokenizer,
        tolerance=tolerance,
        allow_mismatch=allow_mismatch,
    )
    with output_lock(output, "megaponder convert from-hf"):
        folder, certificate = convert(source, output, options)
    _show(certificate)
    say(f"written to {folder}")


@app.command(
    "to-hf",
    epilog=examples(
        "megaponder convert to-hf runs/vanilla/checkpoints --output exported --tokenizer pythia-2.8b",
        "megaponder convert to-hf runs/vanilla/checkpoints --iteration 1000 --output exported --dtype bf16",
    ),
)
def to_hf(
    checkpoint: Checkpoint,
    output: Output,
    iteration: Iteration = None,
    dtype: Annotated[
        Literal["fp32", "fp16", "bf16"] | None,
        typer.Option(
            help="Data type of the weights; default: as stored in the checkpoint.", show_default=False
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder with the files of a Hugging Face tokenizer; default: `tokenizer` next to the "
            "checkpoint, else the tokenizer of the run's data.",
            show_default=False,
        ),
    ] = None,
    no_tokenizer: NoTokenizer = False,
    shard_gigabytes: Annotated[
        float, typer.Option(min=1e-6, metavar="GB", help="Largest size of one weights file.")
    ] = 5.0,
    tolerance: Tolerance = 1e-3,
    allow_mismatch: AllowMismatch = False,
    evaluation: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Results of `megaponder eval` for the model card; default: the run's evaluation.json, if it "
            "belongs to this iteration. Scores on tasks are taken from its tasks.json.",
            show_default=False,
        ),
    ] = None,
    license_id: Annotated[
        str | None,
        typer.Option(
            "--license",
            metavar="ID",
            help="License of the weights for the model card, as the hub names it: apache-2.0.",
            show_default=False,
        ),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name on the hub of the model that the training started from, for the model card: "
            "EleutherAI/pythia-410m.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Convert a checkpoint to a folder that transformers loads.

    A vanilla model becomes a GPT-NeoX or Llama model of transformers. A pondering model is written with its
    code: load it with trust_remote_code=True, and its generate() decodes as `megaponder generate` does. A
    sentencepiece model gets a tokenizer.json beside it that encodes the same. Rows that only pad the
    vocabulary are dropped.

    Compares the logits and writes conversion.json as `from-hf` does. If any check fails, nothing is written.
    """
    set_up_logging()
    folder = resolve_checkpoint(checkpoint, iteration=iteration)
    _check_export(output, tokenizer)

    import torch

    from pipeline.conversion.to_hf import ExportOptions
    from pipeline.conversion.to_hf import to_hf as convert

    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    options = ExportOptions(
        dtype=None if dtype is None else dtypes[dtype],
        tokenizer=tokenizer,
        needs_tokenizer=not no_tokenizer,
        shard_bytes=int(shard_gigabytes * 1e9),
        tolerance=tolerance,
        allow_mismatch=allow_mismatch,
        evaluation=evaluation,
        license=license_id,
        base_model=base_model,
    )
    with output_lock(output, "megaponder convert to-hf"):
        certificate = convert(folder, output, options)
    _show(certificate)
    say(f"written to {output}")


def _check_import(source: Path, output: Path, *, ignored: Sequence[str], needs_tokenizer: bool) -> None:
    """Check what can be checked before torch is imported."""
    from pipeline.conversion.hf_config import read_source
    from pipeline.conversion.target_folder import check_is_free, is_left_by_import
    from pipeline.conversion.tokenizer_files import find_tokenizer

    read_source(source, ignored=ignored)
    if needs_tokenizer:
        find_tokenizer(source)
    if not is_left_by_import(output):
        check_is_free(output)


def _check_export(output: Path, tokenizer: Path | None) -> None:
    """Check what can be checked before torch is imported."""
    from pipeline.conversion.target_folder import check_is_free
    from pipeline.conversion.tokenizer_files import find_tokenizer

    check_is_free(output)
    if tokenizer is not None:
        find_tokenizer(tokenizer)


def _show(certificate: "Certificate") -> None:
    tensors, logits = certificate.tensors, certificate.logits
    say(f"{tensors.num_read} tensors read, {len(tensors.made_of)} written, {tensors.num_values:,} values")
    if tensors.new:
        say(f"new: {', '.join(tensors.new)}; {next(iter(tensors.new.values()))}")
    if tensors.num_rounded:
        say(f"{tensors.num_rounded:,} values were rounded")
    if not logits.compared:
        say(f"LOGITS NOT COMPARED: {logits.note}")
        return
    verdict = "" if logits.is_within_tolerance else " (ABOVE THE TOLERANCE)"
    say(
        f"logits compared with {logits.note}: largest difference {logits.max_error:.2e}{verdict}, mean "
        f"{logits.mean_error:.2e}, root mean square of the logits {logits.logit_rms:.2e}; the most likely "
        f"token agrees at {logits.top1_agreement:.1%} of {logits.num_positions} positions"
    )

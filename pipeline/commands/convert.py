"""`megaponder convert`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from megatron_ext.ponder.config import Method
from pipeline.checkpoint.tracker import resolve_checkpoint
from pipeline.commands.shared import Checkpoint, Iteration, examples, set_up_logging

if TYPE_CHECKING:
    from pipeline.conversion.certificate import Certificate

app = typer.Typer(
    no_args_is_help=True,
    help="Take models in from Hugging Face folders, and give them back.",
    epilog=examples(
        "megaponder convert from-hf pythia-2.8b --output runs/pythia",
        "megaponder convert to-hf runs/demo/checkpoints --output exported --no-tokenizer",
    ),
)

Output = Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="An empty or absent folder.")]
NoTokenizer = Annotated[bool, typer.Option("--no-tokenizer", help="Convert without the tokenizer's files.")]
Tolerance = Annotated[
    float,
    typer.Option(
        min=0.0, metavar="SHARE", help="Largest difference, as a share of the logits' root mean square."
    ),
]
AllowMismatch = Annotated[
    bool, typer.Option("--allow-mismatch", help="Accept logits that differ by more than the tolerance.")
]


@app.command(
    "from-hf",
    epilog=examples(
        "megaponder convert from-hf pythia-2.8b --output runs/pythia",
        "megaponder convert from-hf pythia-2.8b --output runs/pythia_p3 --method ponderlm3 "
        "--set ponder.num_latent_thoughts=3 --set data.path=runs/pile",
    ),
)
def from_hf(
    source: Annotated[
        Path, typer.Argument(metavar="HF_DIR", help="Folder with config.json, weights and tokenizer.")
    ],
    output: Output,
    method: Annotated[
        Method | None,
        typer.Option(help="Method of the checkpoint; default: the source's own.", show_default=False),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A setting of the checkpoint's run.", show_default=False
        ),
    ] = None,
    ignored: Annotated[
        list[str] | None,
        typer.Option(
            "--ignore", metavar="KEY", help="A key of config.json that means nothing.", show_default=False
        ),
    ] = None,
    no_tokenizer: NoTokenizer = False,
    tolerance: Tolerance = 1e-3,
    allow_mismatch: AllowMismatch = False,
) -> None:
    """Turn a GPT-NeoX (Pythia) or Llama model into a checkpoint, for init_from, eval and generate.

    Folders of `to-hf` are taken back, those of pondering models too, and published PonderLM-2 models.
    A checkpoint loads onto any layout. Router or gates of a method that the source has not are drawn as
    training starts them. Logits are held against transformers' (the extra `hf`); conversion.json in the
    checkpoint says what was read, written and compared. Where anything is wrong, nothing is written.
    """
    set_up_logging()

    from pipeline.conversion.from_hf import ImportOptions
    from pipeline.conversion.from_hf import from_hf as convert

    options = ImportOptions(
        method=method,
        overrides=overrides or (),
        ignored=ignored or (),
        needs_tokenizer=not no_tokenizer,
        tolerance=tolerance,
        allow_mismatch=allow_mismatch,
    )
    folder, certificate = convert(source, output, options)
    _show(certificate)
    typer.echo(f"written to {folder}")


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
        typer.Option(help="Type of the weights; default: as they are stored.", show_default=False),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="With its files; default: `tokenizer` beside the checkpoint, else that of the run's data.",
            show_default=False,
        ),
    ] = None,
    no_tokenizer: NoTokenizer = False,
    shard_gigabytes: Annotated[
        float, typer.Option(min=1e-6, metavar="GB", help="Of a file of weights.")
    ] = 5.0,
    tolerance: Tolerance = 1e-3,
    allow_mismatch: AllowMismatch = False,
    evaluation: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Of `megaponder eval`, for the card; default: the run's evaluation.json, if it is of "
            "this iteration.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Turn a checkpoint into a folder that transformers loads.

    A vanilla model becomes one of transformers' own classes. A pondering model brings its code along, and a
    model card: load it with trust_remote_code=True, and generate decodes as `megaponder generate` does.
    Padding of the vocabulary is left behind. Logits are compared as in `from-hf`, and conversion.json says
    the same. Where anything is wrong, nothing is written.
    """
    set_up_logging()

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
    )
    _show(convert(resolve_checkpoint(checkpoint, iteration=iteration), output, options))
    typer.echo(f"written to {output}")


def _show(certificate: "Certificate") -> None:
    tensors, logits = certificate.tensors, certificate.logits
    typer.echo(
        f"{tensors.num_read} tensors read, {len(tensors.made_of)} written, {tensors.num_values:,} values"
    )
    if tensors.new:
        typer.echo(f"new: {', '.join(tensors.new)}; {next(iter(tensors.new.values()))}")
    if tensors.num_rounded:
        typer.echo(f"{tensors.num_rounded:,} values were rounded")
    if not logits.compared:
        typer.echo(f"LOGITS WERE NOT COMPARED: {logits.note}")
        return
    verdict = "" if logits.is_within_tolerance else " ABOVE THE TOLERANCE"
    typer.echo(
        f"logits beside {logits.note}: largest difference {logits.max_error:.2e}{verdict}, mean "
        f"{logits.mean_error:.2e}, at a root mean square of {logits.logit_rms:.2e}; "
        f"{logits.top1_agreement:.1%} of "
        f"{logits.num_positions} positions have the same most likely token"
    )

"""Run `python -m tests.golden`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from megatron_ext.ponder.config import Method
from pipeline.commands.shared import examples, exit_on_user_error, set_up_logging

EPILOG = examples(
    "python -m tests.golden tests/golden",
    "python -m tests.golden tests/golden --method ponderlm3 --tensor-parallel 2 --json golden.json",
)


def golden(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of cases (.json with .safetensors).")],
    kind: Annotated[
        Literal["forward", "decode", "all"], typer.Option(help="Training forwards, decoding, or both.")
    ] = "all",
    tensor_parallel: Annotated[int, typer.Option(min=1, metavar="N", help="Tensor-parallel ranks.")] = 1,
    context_parallel: Annotated[
        int, typer.Option(min=1, metavar="N", help="Context-parallel ranks, which share each row.")
    ] = 1,
    pipeline_parallel: Annotated[int, typer.Option(min=1, metavar="N", help="Pipeline-parallel ranks.")] = 1,
    method: Annotated[
        Method | None,
        typer.Option(help="Run only the cases of this method; default: all.", show_default=False),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Also write the results here.", show_default=False),
    ] = None,
) -> None:
    """Compare the production model with golden vectors.

    Prints the largest ratio of error to tolerance of each case: for logits, loss, thoughts and gradients, and
    in decoding for tokens, logits, steps, and the rows computed and stored.

    Exit code 0: all applicable cases passed; 1: one exceeded its tolerance, or none ran; 3: some cannot be
    computed, such as decoding on several pipeline stages, and --kind or --method does not exclude them.
    """
    from megatron_ext.ponder.config import Method as ModelMethod
    from tests.support.golden.command import run_golden

    set_up_logging()
    code = run_golden(
        folder,
        kind=kind,
        method=ModelMethod(method) if method else None,
        tensor_parallel=tensor_parallel,
        context_parallel=context_parallel,
        pipeline_parallel=pipeline_parallel,
        json_file=json_file,
    )
    raise typer.Exit(code)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(epilog=EPILOG)(golden)
    with exit_on_user_error():
        app()

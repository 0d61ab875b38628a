"""`megaponder generate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from pipeline.commands.checkpoint_argument import Checkpoint, Iteration, speaks
from pipeline.commands.shared import examples, set_up_logging

if TYPE_CHECKING:
    from pipeline.inference import OpenedCheckpoint
    from pipeline.report.inputs import TextSample

HELDOUT_PROMPT_TOKENS = 32
EPILOG = examples(
    "megaponder generate runs/demo/checkpoints --prompt 'import os' --max-new-tokens 80",
    "megaponder generate runs/demo/checkpoints --temperature 0.8 --top-p 0.95 --seed 1",
    "megaponder generate runs/demo/checkpoints/iter_0000200 --output sample.json",
)


def generate(
    checkpoint: Checkpoint,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Text to continue; default: the start of a held-out document.",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens to add at most.")] = 64,
    temperature: Annotated[
        float, typer.Option(min=0.0, metavar="T", help="Divides the logits; 0 takes the most likely token.")
    ] = 0.0,
    top_k: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Choose among the N likeliest.", show_default=False)
    ] = None,
    top_p: Annotated[
        float, typer.Option(min=1e-6, max=1.0, metavar="P", help="Choose among the likeliest that make up P.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the choice.")] = 0,
    iteration: Iteration = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Also write text, steps and losses as JSON.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Continue a text; every token takes only the steps it needs.

    Shows each token on the colour of its steps. Pruned steps are not computed and leave no keys or values.
    Under torchrun the model is split over all ranks.
    """
    is_first = speaks()
    set_up_logging(speaks=is_first)

    from pipeline.generate import SamplingSettings
    from pipeline.generate import generate as generate_text
    from pipeline.inference import opened_checkpoint
    from pipeline.report.inputs import save_json

    sampling = SamplingSettings(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    with opened_checkpoint(checkpoint, iteration=iteration) as opened:
        prompt_ids = _prompt_ids(opened, prompt)
        sample = generate_text(opened, prompt_ids, num_tokens=max_new_tokens, sampling=sampling)
    if not is_first:
        return
    _show(sample)
    if output is not None:
        save_json(sample, output)


def _prompt_ids(opened: "OpenedCheckpoint", prompt: str | None) -> list[int]:
    if prompt is not None:
        token_ids = [int(token) for token in opened.tokenizer.encode(prompt)]
        if not token_ids:
            raise typer.BadParameter("must not be empty", param_hint="--prompt")
        return token_ids

    from pipeline.data.prompts import read_prompts

    prompts = read_prompts(
        opened.heldout, opened.tokenizer, num_prompts=1, prompt_tokens=HELDOUT_PROMPT_TOKENS
    )
    return list(prompts[0].token_ids)


def _show(sample: "TextSample") -> None:
    from pipeline.commands.sample_text import render_legend, render_sample

    console = Console()
    console.print(render_sample(sample))
    legend = render_legend(sample)
    if legend:
        console.print(legend)

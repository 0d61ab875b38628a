"""`megaponder generate`."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.commands.asking import answer_prompts, asks_for_prompts
from pipeline.commands.early_checks import check_checkpoint
from pipeline.commands.limit_options import BudgetOption, LimitOptions, MaxSteps, Threshold, spent_line
from pipeline.commands.shared import Checkpoint, Iteration, OtherData, examples, set_up_logging, speaks
from pipeline.shared.console import say

if TYPE_CHECKING:
    from pipeline.evaluation.opened import OpenedCheckpoint

HELDOUT_PROMPT_TOKENS = 32
EPILOG = examples(
    "megaponder generate runs/demo/checkpoints --prompt 'import os' --max-new-tokens 80",
    "megaponder generate runs/demo/checkpoints --temperature 0.8 --top-p 0.95 --seed 1",
    "megaponder generate runs/demo/checkpoints --prompts-file prompts.jsonl --json-lines texts.jsonl",
    "megaponder generate runs/demo/checkpoints --prompt 'import os' --budget 1.5",
    "megaponder generate runs/demo/checkpoints/iter_0000200 --output sample.json",
)

# Tokens that are added to a text by default.
NUM_NEW_TOKENS = 64

Prompt = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="Text to continue, any number of them; default: asked for on a terminal, else the start of a "
        "held-out document.",
        show_default=False,
    ),
]
PromptsFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Texts to continue, one per line; in a .jsonl file each line has it under 'prompt'.",
        show_default=False,
    ),
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help=f"Tokens to add at most; default: {NUM_NEW_TOKENS}, or half of the model's positions.",
        show_default=False,
    ),
]
Temperature = Annotated[
    float, typer.Option(min=0.0, metavar="T", help="Divides the logits; 0 takes the most likely token.")
]
TopK = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Choose among the N most likely.", show_default=False),
]
TopP = Annotated[
    float,
    typer.Option(min=1e-6, max=1.0, metavar="P", help="Choose among the most likely that make up P."),
]
RepetitionPenalty = Annotated[
    float,
    typer.Option(min=1e-6, metavar="X", help="Above 1, tokens that the text has become less likely."),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT", help="Ends a text, which does not include it; any number.", show_default=False
    ),
]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Of the sampling; each text samples on its own.")]
Prefill = Annotated[
    Literal["jacobi", "exact"],
    typer.Option(help="Read prompts by sweeps over all tokens until they settle, or token by token."),
]
SweepDamping = Annotated[
    float,
    typer.Option(
        min=0.0, max=0.99, metavar="A", help="Share of a thought that a sweep over prompts keeps; 0 to 0.99."
    ),
]
SweepGroups = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="G",
        help="Groups of every G-th token in a sweep over prompts, each against what those before it left "
        "(Gauss-Seidel); 1 is Jacobi.",
    ),
]
SweepBySlot = Annotated[
    bool,
    typer.Option(
        "--sweep-by-slot",
        help="Sweep slot 0 of all tokens of a prompt, then slot 1, and so on (Gauss-Seidel over the slots).",
    ),
]
CutPrompts = Annotated[
    bool,
    typer.Option(
        "--cut-prompts",
        help="Cut the beginning of prompts that leave no room for the new tokens in the model's "
        "max_position_embeddings, instead of refusing them.",
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, metavar="N", help="Texts that are decoded together at most.")]
ShowSteps = Annotated[
    bool, typer.Option("--show-steps/--no-show-steps", help="Colour each token by its steps.")
]
JsonLines = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write a line of JSON for each text as soon as it has ended.",
        show_default=False,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Also write text, steps and losses of a single text as JSON, for `megaponder report`.",
        show_default=False,
    ),
]


def generate(
    checkpoint: Checkpoint,
    prompt: Prompt = None,
    prompts_file: PromptsFile = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = 1.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    stop: Stop = None,
    seed: Seed = 0,
    prefill: Prefill = "jacobi",
    sweep_damping: SweepDamping = 0.0,
    sweep_groups: SweepGroups = 1,
    sweep_by_slot: SweepBySlot = False,
    max_steps: MaxSteps = None,
    threshold: Threshold = None,
    budget: BudgetOption = None,
    cut_prompts: CutPrompts = False,
    batch_size: BatchSize = 8,
    show_steps: ShowSteps = True,
    iteration: Iteration = None,
    data: OtherData = None,
    json_lines: JsonLines = None,
    output: Output = None,
) -> None:
    """Continue texts; every token takes only the steps it needs.

    Without a prompt it asks for one after the other on a terminal, until Ctrl-D; elsewhere it continues the
    start of a held-out document.

    Each token is shown on the colour of its steps, and a single text while it grows. Pruned steps are not
    computed and leave no keys or values. Under torchrun the model is split over all ranks.

    Ctrl-C (exit code 130) and SIGTERM (75) end it after the current step; texts that have ended are written,
    the others are lost.
    """
    is_first = speaks()
    set_up_logging(speaks=is_first)
    texts = _texts(prompt, prompts_file, output)
    asks = not texts and json_lines is None and output is None and asks_for_prompts()
    sweep_option = _sweep_option(sweep_damping, sweep_groups, by_slot=sweep_by_slot)
    if sweep_option is not None and prefill == "exact":
        raise typer.BadParameter("is for --prefill jacobi; remove it", param_hint=sweep_option)
    limits = LimitOptions.read(max_steps=max_steps, threshold=threshold, budget=budget)
    folder = check_checkpoint(checkpoint, iteration=iteration, data=data, reads_data=not texts and not asks)
    num_new_tokens = _num_new_tokens(folder, max_new_tokens)

    from pipeline.commands.generate_output import generate_to
    from pipeline.evaluation.opened import opened_checkpoint
    from pipeline.generation.texts import GenerationSettings, Prefill, SamplingSettings
    from pipeline.ranks.signals import StopFlag

    settings = GenerationSettings(
        num_tokens=num_new_tokens,
        sampling=SamplingSettings(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        ),
        stop=tuple(stop or ()),
        prefill=Prefill(prefill),
        damping=sweep_damping,
        num_groups=sweep_groups,
        by_slot=sweep_by_slot,
        batch_size=batch_size,
        cut_prompts=cut_prompts,
    )
    with StopFlag() as stop_flag, opened_checkpoint(checkpoint, iteration=iteration, data=data) as opened:
        method = opened.config.ponder.method
        if sweep_option is not None and not method.has_sweeps:
            raise typer.BadParameter(
                f"is for methods with sweeps, but the run is one of {method}; remove it",
                param_hint=sweep_option,
            )
        num_samples = opened.config.evaluation.iters * opened.config.training.global_batch_size
        applied, met = limits.limits(opened, num_samples=num_samples)
        if met is not None and is_first:
            say(spent_line(met), err=True)
        answer = partial(
            generate_to,
            opened,
            settings=replace(settings, limits=applied),
            json_lines=json_lines,
            sample_file=output,
            show_steps=show_steps,
            speaks=is_first,
        )
        if asks:
            code = answer_prompts(answer, lambda: _heldout_prompt(opened), stop=stop_flag)
        else:
            code = answer(texts or [_heldout_prompt(opened)], stop=stop_flag)
    raise typer.Exit(code)


def _num_new_tokens(checkpoint: Path, given: int | None) -> int:
    """Return how many tokens to add, before torch is imported.

    Raises:
        typer.BadParameter: a text of one token leaves no room for as many as were given.
    """
    from pipeline.checkpoint.stored_config import stored_checkpoint

    most = stored_checkpoint(checkpoint).config.model.max_position_embeddings
    if given is None:
        return min(NUM_NEW_TOKENS, most // 2)
    if given >= most:
        raise typer.BadParameter(
            f"must be less than the {most:,} positions of the model (model.max_position_embeddings), which "
            f"the prompt and the new tokens share, but is {given:,}",
            param_hint="--max-new-tokens",
        )
    return given


def _sweep_option(damping: float, num_groups: int, *, by_slot: bool) -> str | None:
    """Return the option that changes how prompts are swept, if any.

    Raises:
        typer.BadParameter: two of them exclude each other.
    """
    if by_slot and num_groups > 1:
        raise typer.BadParameter("has groups of its own; remove one of the two", param_hint="--sweep-by-slot")
    given = {"--sweep-damping": damping > 0, "--sweep-groups": num_groups > 1, "--sweep-by-slot": by_slot}
    return next((option for option, is_given in given.items() if is_given), None)


def _texts(prompt: list[str] | None, prompts_file: Path | None, output: Path | None) -> list[str]:
    texts = list(prompt or ())
    if not all(texts):
        raise typer.BadParameter("must not be empty", param_hint="--prompt")
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            # Python stands for a byte that is no character of the terminal's encoding by half a pair.
            raise typer.BadParameter(
                f"must be text, but character {error.start + 1} is none; is the terminal's encoding UTF-8?",
                param_hint="--prompt",
            ) from error
    if prompts_file is not None:
        from pipeline.generation.files import read_prompts_file

        texts += read_prompts_file(prompts_file)
    if output is not None and len(texts) > 1:
        raise typer.BadParameter(
            f"takes one text, but there are {len(texts)}; use --json-lines", param_hint="--output"
        )
    return texts


def _heldout_prompt(opened: "OpenedCheckpoint") -> list[int]:
    from pipeline.data.prompts import read_prompts

    prompts = read_prompts(
        opened.heldout, opened.tokenizer, num_prompts=1, prompt_tokens=HELDOUT_PROMPT_TOKENS
    )
    return list(prompts[0].token_ids)

"""A generated text in the terminal, each token on the colour of its steps."""

from collections import Counter
from collections.abc import Sequence

from rich.text import Text

from pipeline.evaluation.results import SampleToken, TextSample
from pipeline.report.colors import DARK_RAMP, step_colors


def render_sample(sample: TextSample) -> Text:
    """Colour the tokens by their steps; what was given is dim, what was generated is not."""
    return render_tokens(sample.tokens, _styles(sample))


def render_tokens(tokens: Sequence[SampleToken], styles: Sequence[str]) -> Text:
    """Join tokens in the styles of their steps; without styles, only what was given stands out."""
    text = Text()
    for token in tokens:
        style = styles[token.steps] if styles else ""
        text.append(token.piece, style=f"dim {style}" if token.is_prompt else style)
    return text


def render_legend(sample: TextSample) -> Text:
    """Say what each colour stands for and how many tokens have it; empty for a method that does not halt."""
    counts = Counter(token.steps for token in sample.tokens)
    legend = Text()
    for steps, style in enumerate(_styles(sample)):
        legend.append(f" {steps} steps: {counts[steps]} tokens ", style=style)
        legend.append(" ")
    return legend


def step_styles(num_latent_thoughts: int) -> list[str]:
    """A style for each number of steps, 0..K."""
    return [f"white on {color}" for color in step_colors(DARK_RAMP, num_latent_thoughts + 1)]


def _styles(sample: TextSample) -> list[str]:
    return [] if sample.pruning_threshold is None else step_styles(sample.num_latent_thoughts)

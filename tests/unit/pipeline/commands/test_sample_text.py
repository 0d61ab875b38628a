from pipeline.commands.sample_text import render_legend, render_sample
from pipeline.evaluation.results import SampleToken, TextSample


def sample(*, pruning_threshold: float | None = 1e-4) -> TextSample:
    return TextSample(
        checkpoint="runs/x/checkpoints/iter_0000010",
        num_latent_thoughts=2,
        pruning_threshold=pruning_threshold,
        tokens_per_second=None,
        tokens=(
            SampleToken(piece="def", steps=0, nll=None, is_prompt=True),
            SampleToken(piece=" [red]x", steps=2, nll=1.5, is_prompt=False),
            SampleToken(piece="(", steps=2, nll=0.1, is_prompt=False),
        ),
    )


def test_the_text_is_shown_letter_by_letter() -> None:
    assert render_sample(sample()).plain == "def [red]x("


def test_equal_steps_have_equal_colours_and_other_steps_others() -> None:
    styles = [str(span.style) for span in render_sample(sample()).spans]

    assert styles[1] == styles[2]
    assert styles[0].removeprefix("dim ") != styles[1]
    assert styles[0].startswith("dim ")


def test_the_legend_counts_tokens_by_steps() -> None:
    legend = render_legend(sample()).plain

    assert [part.strip() for part in legend.strip().split("  ")] == [
        "0 steps: 1 tokens",
        "1 steps: 0 tokens",
        "2 steps: 2 tokens",
    ]


def test_a_method_that_does_not_halt_has_no_colours() -> None:
    assert not render_legend(sample(pruning_threshold=None))
    assert {str(span.style) for span in render_sample(sample(pruning_threshold=None)).spans} <= {"", "dim "}

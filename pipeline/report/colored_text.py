"""Text on the colours of its steps, as HTML with a style of its own: for notebooks."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.report.colors import LIGHT, LIGHT_RAMP, line_widths, step_colors

_BOX = "padding: 12px 14px; border: 1px solid {line}; background: {page}; color: {ink}".format(**LIGHT)
_FONT = (
    "margin: 6px 0 0; padding: 0; background: none; color: inherit; white-space: pre-wrap; "
    "overflow-wrap: anywhere; font: 13.5px/1.9 'DejaVu Sans Mono', Menlo, Consolas, monospace"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ColoredText:
    """A text whose tokens are coloured, and underlined, by the ponder steps that they took.

    A notebook shows it where it is the value of a cell, in the colours of the report for light pages.

    Attributes:
        pieces: the text of each token.
        steps: that each token took, 0 to `most_steps`.
        most_steps: K.
    """

    pieces: Sequence[str]
    steps: Sequence[int]
    most_steps: int

    def __post_init__(self) -> None:
        if len(self.pieces) != len(self.steps):
            raise ValueError(
                f"as many steps as pieces are needed, but there are {len(self.steps)} and {len(self.pieces)}"
            )
        if any(not 0 <= steps <= self.most_steps for steps in self.steps):
            raise ValueError(
                f"steps must be in 0..{self.most_steps}, but are {min(self.steps)}..{max(self.steps)}"
            )

    def _repr_html_(self) -> str:
        """Return the text below a legend with the number of tokens per colour."""
        styles = self._styles()
        counts = Counter(self.steps)
        legend = Markup(" &nbsp; ").join(
            Markup('<span style="{}">&nbsp;{}&nbsp;</span> {} tokens').format(style, steps, counts[steps])
            for steps, style in enumerate(styles)
        )
        text = Markup().join(
            Markup('<span style="{}" title="{} of {} steps">{}</span>').format(
                styles[steps], steps, self.most_steps, _visible(piece)
            )
            for piece, steps in zip(self.pieces, self.steps, strict=True)
        )
        # In `pre`, where programs that shorten pages leave spaces alone.
        return Markup('<div style="{}"><div>steps: {}</div><pre style="{}">{}</pre></div>').format(
            _BOX, legend, Markup(_FONT), text
        )

    def _styles(self) -> list[str]:
        num_colors = self.most_steps + 1
        pairs = zip(step_colors(LIGHT_RAMP, num_colors), line_widths(num_colors), strict=True)
        return [f"background: {color}; border-bottom: {line}px solid {LIGHT['ink']}" for color, line in pairs]


def _visible(piece: str) -> str:
    """Return a piece with a mark before a line break, so that the break has a colour."""
    return f"{piece[:-1]}\u21b5\n" if piece.endswith("\n") else piece

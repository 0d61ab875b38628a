"""`python -m scripts.screenshots RUN`: make the pictures of the documentation from a finished run."""

import asyncio
import base64
import shlex
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.shared.console import say
from scripts.commands import run_script
from scripts.screenshots.board import serve_board, shown_charts
from scripts.screenshots.browser import Page, open_page
from scripts.screenshots.terminal import render_terminal, shown_by, size_of

PICTURES = Path("docs/pictures")
# That of the demo.
PROMPT = 'def read_lines(path):\n    """Return the lines of a file."""\n'
WIDTHS = {"wide": (1280, 1100), "phone": (390, 844)}
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


def main(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run that has a report.")],
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="For the pictures.")] = PICTURES,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="That the model continues.")] = PROMPT,
    whole: Annotated[
        bool, typer.Option("--whole", help="Whole pages of the report, not their tops.")
    ] = False,
) -> None:
    """Make the pictures: the report wide and on a phone, light and dark; TensorBoard; the terminal."""
    output.mkdir(parents=True, exist_ok=True)
    # A small model repeats itself when it always takes the most likely token.
    sampling = ("--temperature", "0.8", "--top-p", "0.9", "--seed", "1")
    commands = {
        "doctor": ["doctor"],
        "generate": ["generate", str(run), "--prompt", prompt, "--max-new-tokens", "60", *sampling],
    }
    terminals = {
        name: render_terminal(f"megaponder {shlex.join(words)}", shown_by(*words))
        for name, words in commands.items()
    }
    asyncio.run(_pictures(run, output, terminals, is_whole_page=whole))


async def _pictures(run: Path, output: Path, terminals: Mapping[str, str], *, is_whole_page: bool) -> None:
    async with open_page() as page:
        for name, svg in terminals.items():
            _write(output / f"{name}.png", await picture_of_terminal(page, svg))
        for size, (width, height) in WIDTHS.items():
            for scheme in SCHEMES:
                await page.emulate(width=width, height=height, scheme=scheme)
                await page.open((run / "report.html").absolute().as_uri())
                _write(
                    output / f"report_{size}_{scheme}.png", await page.screenshot(is_whole_page=is_whole_page)
                )
        with serve_board(run) as address:
            await page.emulate(width=1280, height=900, scheme="light")
            await shown_charts(page, address)
            _write(output / "tensorboard.png", await page.screenshot())


async def picture_of_terminal(page: Page, svg: str) -> bytes:
    """Return a terminal as PNG.

    Args:
        page: of a browser.
        svg: of :func:`render_terminal`.
    """
    width, height = size_of(svg)
    await page.emulate(width=width, height=height, scheme="light")
    encoded = base64.b64encode(svg.encode()).decode("ascii")
    await page.open(f"data:image/svg+xml;base64,{encoded}")
    return await page.screenshot()


def _write(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    say(f"written to {file}")


if __name__ == "__main__":
    run_script(partial(typer.run, main))

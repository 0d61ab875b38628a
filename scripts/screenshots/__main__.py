"""`python -m scripts.screenshots RUN`: make the pictures of the documentation from a finished run."""

import asyncio
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.commands.shared import exit_on_user_error
from pipeline.shared.console import say
from scripts.screenshots.board import serve_board, shown_charts
from scripts.screenshots.browser import open_page
from scripts.screenshots.terminal import render_terminal, shown_by

PICTURES = Path("docs/pictures")
WIDTHS = {"wide": (1280, 1100), "phone": (390, 844)}
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


def main(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run that has a report.")],
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="For the pictures.")] = PICTURES,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="That the model continues.")] = "import os",
    whole: Annotated[
        bool, typer.Option("--whole", help="Whole pages of the report, not their tops.")
    ] = False,
) -> None:
    """Make the pictures: the report wide and on a phone, light and dark; TensorBoard; the terminal."""
    with exit_on_user_error():
        output.mkdir(parents=True, exist_ok=True)
        asyncio.run(_pages(run, output, is_whole_page=whole))
        checkpoints = str(run / "checkpoints")
        commands = {
            "doctor": ["doctor"],
            "generate": ["generate", checkpoints, "--prompt", prompt, "--max-new-tokens", "60"],
        }
        for name, words in commands.items():
            render_terminal(f"megaponder {' '.join(words)}", shown_by(*words), output / f"{name}.svg")
            say(f"written to {output / name}.svg")


async def _pages(run: Path, output: Path, *, is_whole_page: bool) -> None:
    async with open_page() as page:
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


def _write(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    say(f"written to {file}")


if __name__ == "__main__":
    typer.run(main)

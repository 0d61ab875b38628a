"""`python -m scripts.notebooks RUN`: execute the notebooks of the documentation with a run's export.

Needs the extra `docs`. Outputs are stored without times and progress bars.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import nbformat
import typer
from nbclient import NotebookClient

from pipeline.shared.console import say
from pipeline.shared.files import write_atomically
from scripts.commands import megaponder, run_script

NOTEBOOKS = Path(__file__).resolve().parents[1] / "docs" / "notebooks"
_LIMIT_SECONDS = 600
_WIDGET = "application/vnd.jupyter.widget-view+json"


def main(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run, such as runs/demo.")],
) -> None:
    """Export a run, and execute every notebook of the documentation beside the export."""
    with tempfile.TemporaryDirectory() as folder:
        megaponder("convert", "to-hf", str(run), "--output", str(Path(folder, "exported")))
        for file in sorted(NOTEBOOKS.glob("*.ipynb")):
            write_atomically(file, executed(file, Path(folder)))
            say(f"written to {file}")


def executed(file: Path, folder: Path) -> str:
    """Return a notebook with the outputs of its cells.

    Args:
        file: to execute; it is not changed.
        folder: where its cells run.
    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    notebook = nbformat.read(file, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=_LIMIT_SECONDS,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_progress(output)]
    # Versions of Python and Jupyter are no part of what a notebook shows.
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return f"{nbformat.writes(notebook).rstrip()}\n"


def _is_progress(output: Any) -> bool:
    return output.get("name") == "stderr" or _WIDGET in output.get("data", {})


if __name__ == "__main__":
    run_script(partial(typer.run, main))

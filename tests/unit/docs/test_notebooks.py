"""The notebooks of the documentation: their cells run, and what is committed is what they show."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

from megatron_ext.model.config import Architecture
from megatron_ext.ponder.config import Method
from pipeline.conversion.to_hf import ExportOptions, to_hf
from tests.support.hf_models import use_module_cache
from tests.support.ponder_models import VOCAB_SIZE
from tests.support.pondering_exports import write_checkpoint
from tests.support.ranks import run_alone

transformers = pytest.importorskip("transformers")

REPOSITORY = Path(__file__).parents[3]
NOTEBOOKS = sorted((REPOSITORY / "docs" / "notebooks").glob("*.ipynb"))
# An absolute path in what is printed or in the source, an error, or a warning.
OF_A_PLACE = re.compile(r"(?<![\w.:/<*])/[a-z]\w*/|Traceback|stderr")


def code_cells(file: Path) -> list[dict[str, Any]]:
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def value_of(source: str, names: dict[str, Any]) -> Any:
    """Run the source of a cell; return the value of its last line as a notebook does."""
    *lines, last = ast.parse(source).body
    if not isinstance(last, ast.Expr):
        lines, last = [*lines, last], ast.Expr(ast.Constant(None))
    exec(compile(ast.Module(lines, []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the export of a tiny PonderLM-3, whose tokens are single characters."""
    folder = tmp_path_factory.mktemp("notebooks")
    model = (Method.PONDERLM3, Architecture.LLAMA, False)
    checkpoint, _ = run_alone(write_checkpoint, folder / "native", *model)
    to_hf(checkpoint, folder / "exported", ExportOptions(needs_tokenizer=False))
    write_tokenizer(folder / "exported")
    return folder


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    letters = 'abcdefghijklmnopqrstuvwxyz_.,:()=\n" '
    vocabulary = {letter: number for number, letter in enumerate(["?", *letters])}
    assert len(vocabulary) <= VOCAB_SIZE
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?")
    fast.save_pretrained(folder)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_every_cell_of_a_notebook_runs(file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    use_module_cache(monkeypatch, folder / "code")
    with mpl.rc_context({"backend": "agg"}):
        names: dict[str, Any] = {}
        for cell in code_cells(file):
            shown = value_of("".join(cell["source"]), names)
            kinds = {kind for output in cell["outputs"] for kind in output.get("data", ())}
            # What was shown when the notebook was executed is still shown in this way.
            assert ("text/html" in kinds) == (shown is not None and bool(shown._repr_html_()))


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_committed_with_outputs_that_say_nothing_about_the_machine(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text) < 200_000
    shown = re.sub(r'"image/png": "[^"]*"', "", text)
    assert OF_A_PLACE.findall(shown) == []
    cells = code_cells(file)
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    assert all(cell["outputs"] and cell["metadata"] == {} for cell in cells)
    assert set(json.loads(text)["metadata"]) == {"kernelspec", "language_info"}

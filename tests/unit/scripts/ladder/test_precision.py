from pathlib import Path

import pytest

from pipeline.shared.errors import DataError
from scripts.ladder import precision
from scripts.ladder.precision import precision_settings


@pytest.mark.parametrize(
    ("of_recipe", "is_able", "settings"),
    [
        ("bf16", False, {"training.precision": "fp32"}),
        ("bf16", True, {}),
        ("fp32", False, {}),
    ],
)
def test_a_ladder_of_bf16_runs_in_fp32_where_the_cpu_has_no_bf16(
    of_recipe: str,
    is_able: bool,
    settings: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "computes_bf16", lambda: is_able)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"training: {{precision: {of_recipe}}}\n")

    assert precision_settings(recipe) == settings


@pytest.mark.parametrize("text", ["", "training: 1", "model: {}", "training: [", None])
def test_a_recipe_without_training_is_refused(text: str | None, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    if text is not None:
        recipe.write_text(text)

    with pytest.raises(DataError, match=r"recipe\.yaml must be a recipe"):
        precision_settings(recipe)

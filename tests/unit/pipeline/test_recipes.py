"""Every recipe is a run that could start, and every method has one at each size."""

from pathlib import Path

import pytest

from megatron_ext.ponder.config import Method
from pipeline.config.load import dump_config, load_config
from pipeline.run_account import flops_account

RECIPES = Path(__file__).parents[3] / "pipeline" / "recipes"
# Ids of the tokenizer of Pythia.
VOCAB_SIZE = 50_277


def recipes() -> list[Path]:
    return sorted(RECIPES.glob("*.yaml"))


def test_every_method_has_a_recipe_at_every_size() -> None:
    expected = {
        name for method in Method for name in (f"tiny_{method}", f"{method}_70m", f"{method}_410m_llama")
    }

    assert {path.stem for path in recipes()} == expected | {"demo"}


@pytest.mark.parametrize("path", recipes(), ids=lambda path: path.stem)
def test_a_recipe_is_valid_and_named_like_its_file(path: Path, tmp_path: Path) -> None:
    config = load_config(path)

    assert config.name == path.stem
    assert path.stem == "demo" or config.ponder.method in path.stem.split("_")
    dump_config(config, tmp_path / "run_config.yaml")
    assert load_config(tmp_path / "run_config.yaml") == config


@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize(
    ("size", "non_embedding", "tokens"), [("70m", 18_915_328, 30.0e9), ("410m_llama", 303_612_928, 26.2e9)]
)
def test_recipes_have_the_published_sizes(
    method: Method, size: str, non_embedding: int, tokens: float
) -> None:
    config = load_config(RECIPES / f"{method}_{size}.yaml")
    parameters = flops_account(config, VOCAB_SIZE).parameters()
    training = config.training

    assert parameters.non_embedding - parameters.router - parameters.gates == non_embedding
    assert parameters.embedding == 50_304 * config.model.hidden_size
    trained = training.train_iters * training.global_batch_size * training.seq_length
    assert trained == pytest.approx(tokens, rel=0.002)

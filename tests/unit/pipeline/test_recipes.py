"""Every recipe is a run that could start, and every method has one at each size."""

import re
from pathlib import Path

import pytest

from megatron_ext.ponder.config import Method
from pipeline.config.load import dump_config, load_config
from pipeline.plan.devices import DEVICES, GIB
from pipeline.plan.run_plan import Assumptions, plan_run
from pipeline.run_account import flops_account

RECIPES = Path(__file__).parents[3] / "pipeline" / "recipes"
# Ids of the tokenizer of Pythia.
VOCAB_SIZE = 50_277


LARGE = {"pythia_2.8b_ponderlm3", "pythia_2.8b_adaponderlm", "pythia_1.4b_ponderlm2"}
# A line of a recipe's head: devices, and the settings for so many.
LAYOUT = re.compile(r"^#   (\d+): (.+)$", re.MULTILINE)
H100 = Assumptions(device=DEVICES["h100-80g"], mfu=0.4, reserve_bytes=6 * GIB)


def recipes() -> list[Path]:
    return sorted(RECIPES.glob("*.yaml"))


def test_every_method_has_a_recipe_at_every_size() -> None:
    expected = {
        name for method in Method for name in (f"tiny_{method}", f"{method}_70m", f"{method}_410m_llama")
    }

    assert {path.stem for path in recipes()} == expected | {"demo"} | LARGE


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


@pytest.mark.parametrize("path", recipes(), ids=lambda path: path.stem)
def test_every_recipe_fits_the_devices_it_asks_for(path: Path) -> None:
    config = load_config(path)

    plan = plan_run(config, config.model.vocab_size or VOCAB_SIZE, H100)

    assert plan.fits, f"{path.stem} needs {plan.needed_bytes / GIB:.1f} GiB"


@pytest.mark.parametrize("name", sorted(LARGE))
def test_large_recipes_fit_on_8_64_and_256_devices(name: str) -> None:
    path = RECIPES / f"{name}.yaml"
    layouts = LAYOUT.findall(path.read_text(encoding="ascii"))

    assert [number for number, _ in layouts] == ["8", "64", "256"]
    for number, settings in layouts:
        config = load_config(path, [] if settings == "as it is" else settings.split())
        assert config.parallel.world_size == int(number)
        assert config.model.vocab_size is not None
        assert plan_run(config, config.model.vocab_size, H100).fits


@pytest.mark.parametrize(
    ("name", "non_embedding", "tokens"),
    [
        ("pythia_2.8b_ponderlm3", 2_517_652_480, 30.0e9),
        ("pythia_2.8b_adaponderlm", 2_517_652_480, 12.0e9),
        ("pythia_1.4b_ponderlm2", 1_208_602_624, 299_892_736_000),
    ],
)
def test_large_recipes_have_the_published_sizes(name: str, non_embedding: int, tokens: float) -> None:
    config = load_config(RECIPES / f"{name}.yaml")
    parameters = flops_account(config, VOCAB_SIZE).parameters()
    training = config.training

    assert parameters.non_embedding - parameters.router - parameters.gates == non_embedding
    trained = training.train_iters * training.global_batch_size * training.seq_length
    assert trained == pytest.approx(tokens, rel=0.001)

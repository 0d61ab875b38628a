"""Every recipe is a run that could start, and every method has one at each size."""

import re
from pathlib import Path

import pytest
import torch

from megatron_ext.ponder.config import Method
from pipeline.config.load import dump_config, load_config
from pipeline.conversion.hf_config import parse_source
from pipeline.cost.account import flops_account
from pipeline.cost.peaks import DEVICES, GIB
from pipeline.cost.plan import Assumptions, plan_run
from pipeline.run.source_conversion import refuse_other_model
from tests.bench.conversion import NeoxSizes, hf_settings

RECIPES = Path(__file__).parents[3] / "pipeline" / "recipes"
# Ids of the tokenizer of Pythia.
VOCAB_SIZE = 50_277


FORMS = {"tiny_ponderlm3_authors", "llama_410m_ponderlm3_authors"}
LARGE = {"pythia_2.8b_ponderlm3", "pythia_2.8b_adaponderlm", "pythia_1.4b_ponderlm2"}
LLAMA = (*(f"llama_410m_{method}" for method in Method), "llama_410m_ponderlm3_authors")
# A line of a recipe's head: devices, and the settings for so many.
LAYOUT = re.compile(r"^#   (\d+): (.+)$", re.MULTILINE)
H100 = Assumptions(device=DEVICES["h100-80g"], mfu=0.4, reserve_bytes=6 * GIB)


def recipes() -> list[Path]:
    return sorted(RECIPES.glob("*.yaml"))


def test_every_method_has_a_recipe_at_every_size() -> None:
    expected = {
        name for method in Method for name in (f"tiny_{method}", f"{method}_70m", f"llama_410m_{method}")
    }

    assert {path.stem for path in recipes()} == expected | {"demo"} | LARGE | FORMS


@pytest.mark.parametrize("path", recipes(), ids=lambda path: path.stem)
def test_a_recipe_is_valid_and_named_like_its_file(path: Path, tmp_path: Path) -> None:
    config = load_config(path)

    assert config.name == path.stem
    assert path.stem == "demo" or f"_{config.ponder.method}_" in f"_{path.stem}_"
    dump_config(config, tmp_path / "run_config.yaml")
    assert load_config(tmp_path / "run_config.yaml") == config


@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize(
    ("size", "non_embedding", "tokens"), [("70m", 18_915_328, 30.0e9), ("410m", 303_612_928, 26.2e9)]
)
def test_recipes_have_the_published_sizes(
    method: Method, size: str, non_embedding: int, tokens: float
) -> None:
    name = f"{method}_70m" if size == "70m" else f"llama_410m_{method}"
    config = load_config(RECIPES / f"{name}.yaml")
    parameters = flops_account(config, VOCAB_SIZE).parameters()
    training = config.training

    assert parameters.non_embedding - parameters.decider == non_embedding
    assert parameters.embedding == 50_304 * config.model.hidden_size
    trained = training.train_iters * training.global_batch_size * training.seq_length
    assert trained == pytest.approx(tokens, rel=0.002)


@pytest.mark.parametrize("path", recipes(), ids=lambda path: path.stem)
def test_every_recipe_fits_the_devices_it_asks_for(path: Path) -> None:
    config = load_config(path)

    plan = plan_run(config, config.model.vocab_size or VOCAB_SIZE, H100)

    assert plan.fits, f"{path.stem} needs {plan.needed_bytes / GIB:.1f} GiB"


@pytest.mark.parametrize("name", [*sorted(LARGE), *LLAMA])
def test_large_recipes_fit_on_8_64_and_256_devices(name: str) -> None:
    path = RECIPES / f"{name}.yaml"
    # What the Llama recipes share is said once.
    head = path if name in LARGE else RECIPES / "base" / "llama_410m.yaml"
    layouts = LAYOUT.findall(head.read_text(encoding="ascii"))

    assert [number for number, _ in layouts] == ["8", "64", "256"]
    for number, settings in layouts:
        config = load_config(path, [] if settings == "as it is" else settings.split())
        assert config.parallel.world_size == int(number)
        assert config.model.vocab_size is not None
        assert plan_run(config, config.model.vocab_size, H100).fits


@pytest.mark.parametrize("name", ["pythia_2.8b_ponderlm3", "pythia_2.8b_adaponderlm"])
def test_the_2_8b_recipes_continue_the_published_weights(name: str) -> None:
    config = load_config(RECIPES / f"{name}.yaml")

    assert (config.init_from.format, config.init_from.method) == ("hf", "vanilla")
    assert not config.ponder.scale_embeds
    assert config.evaluates_at_start
    source = parse_source(hf_settings(NeoxSizes(), dtype=torch.float16), origin="config.json")
    refuse_other_model(config, source, vocab_size=50_304)


def test_the_1_4b_recipe_continues_the_published_weights_as_its_head_says() -> None:
    path = RECIPES / "pythia_1.4b_ponderlm2.yaml"
    head = path.read_text(encoding="ascii")
    start = head.index("init_from.path=")
    settings = head[start : head.index(",", start)].replace("\n#", "").split()
    config = load_config(path, settings)

    sizes = NeoxSizes(num_layers=24, hidden_size=2048, num_heads=16, ffn_size=8192)
    source = parse_source(hf_settings(sizes, dtype=torch.float16), origin="config.json")
    refuse_other_model(config, source, vocab_size=50_304)
    assert (config.init_from.format, config.ponder.scale_embeds) == ("hf", False)


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

    assert parameters.non_embedding - parameters.decider == non_embedding
    trained = training.train_iters * training.global_batch_size * training.seq_length
    assert trained == pytest.approx(tokens, rel=0.001)

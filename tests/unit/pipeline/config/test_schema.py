from pathlib import Path

import pytest
from pydantic import ValidationError

from megatron_ext.ponder.config import Method
from pipeline.config.schema import ModelConfig, PonderSection, RunConfig
from pipeline.config.validate import build_config
from tests.unit.pipeline.config.settings import changed_settings, valid_settings


def test_dependent_defaults_follow_what_they_depend_on() -> None:
    config = build_config(changed_settings(name="small"))

    assert config.model.num_query_groups == 4
    assert config.model.kv_channels == 16
    assert config.model.rotary_percent == 1.0
    assert config.output_dir == Path("runs/small")
    assert config.checkpoint_directory == Path("runs/small/checkpoints")
    assert config.lr_decay_iters == config.training.train_iters == 100


def test_neox_rotates_a_quarter_of_the_head_by_default() -> None:
    assert build_config(changed_settings(model__architecture="gpt_neox")).model.rotary_percent == 0.25


def test_vanilla_has_no_thoughts_and_no_sweeps_by_default() -> None:
    vanilla = PonderSection(method=Method.VANILLA)
    ponderlm2 = PonderSection(method=Method.PONDERLM2)

    assert (vanilla.num_latent_thoughts, vanilla.num_jacobi_iterations) == (0, 0)
    assert (ponderlm2.num_latent_thoughts, ponderlm2.num_jacobi_iterations) == (3, 2)


def test_null_means_not_given() -> None:
    config = build_config(changed_settings(model__num_query_groups=None, ponder__penalty_weight=None))

    assert config.model.num_query_groups == 4
    assert config.ponder.penalty_weight == 0.3


def test_a_configuration_is_frozen() -> None:
    config = build_config(valid_settings())

    with pytest.raises(ValidationError, match="frozen"):
        config.training.train_iters = 5  # type: ignore[misc]


def test_world_size_is_the_product_of_the_axes() -> None:
    assert build_config(changed_settings(parallel={"tensor": 2, "data": 2})).parallel.world_size == 4


def test_micro_batches_fill_the_global_batch() -> None:
    config = build_config(changed_settings(parallel__data=2, training__global_batch_size=32))

    assert config.num_micro_batches == 4


@pytest.mark.parametrize(
    ("vocab_size", "tensor", "padded"), [(2048, 2, 2048), (2049, 2, 2304), (1, 1, 128), (50257, 1, 50304)]
)
def test_vocabulary_is_padded_by_megatrons_rule(vocab_size: int, tensor: int, padded: int) -> None:
    config = build_config(changed_settings(parallel__tensor=tensor))

    assert config.padded_vocab_size(vocab_size) == padded


def test_a_section_alone_is_checked_for_types_and_ranges_only() -> None:
    model = ModelConfig(
        architecture="llama", num_layers=3, hidden_size=66, ffn_hidden_size=7, num_attention_heads=4
    )

    assert model.kv_channels == 16


def test_a_configuration_made_in_code_obeys_the_rules_too() -> None:
    with pytest.raises(ValidationError, match=r"parallel\.tensor: must divide"):
        RunConfig.model_validate(changed_settings(parallel__tensor=3))

from pathlib import Path

import pytest
from pydantic import ValidationError

from megatron_ext.ponder.config import Method
from pipeline.config.load import build_config
from pipeline.config.schema import ModelConfig, PonderSection, RunConfig, padded_vocab_size
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


@pytest.mark.parametrize(
    ("method", "thoughts", "sweeps", "mixture", "penalty", "weight", "fraction"),
    [
        ("vanilla", 0, 0, "hidden", "expected_steps", 0.3, 0.25),
        ("loop", 3, 0, "hidden", "expected_steps", 0.3, 0.25),
        ("pause", 3, 0, "hidden", "expected_steps", 0.3, 0.25),
        ("ponderlm", 3, 0, "softmax", "expected_steps", 0.3, 0.25),
        ("ponderlm2", 3, 2, "hidden", "expected_steps", 0.3, 0.25),
        ("adaponderlm", 3, 0, "softmax", "bottom_k", 0.1, 0.1),
        ("ponderlm3", 3, 2, "hidden", "expected_steps", 0.3, 0.25),
        ("adaptive_latent_cot", 3, 0, "hidden", "expected_steps", 0.1, 0.25),
    ],
)
def test_defaults_follow_the_method(
    method: str, thoughts: int, sweeps: int, mixture: str, penalty: str, weight: float, fraction: float
) -> None:
    ponder = PonderSection(method=method)

    assert (ponder.num_latent_thoughts, ponder.num_jacobi_iterations) == (thoughts, sweeps)
    assert (ponder.mixture, ponder.penalty) == (mixture, penalty)
    assert (ponder.penalty_weight, ponder.bottom_k_fraction) == (weight, fraction)
    assert ponder.scale_embeds is (method != "vanilla")


def test_without_thoughts_there_are_no_sweeps_by_default() -> None:
    assert PonderSection(method=Method.PONDERLM2, num_latent_thoughts=0).num_jacobi_iterations == 0


def test_null_means_not_given() -> None:
    config = build_config(changed_settings(model__num_query_groups=None, ponder__penalty_weight=None))

    assert config.model.num_query_groups == 4
    assert config.ponder.penalty_weight == 0.3


def test_a_configuration_is_frozen() -> None:
    config = build_config(valid_settings())

    with pytest.raises(ValidationError) as caught:
        config.training.train_iters = 5  # type: ignore[misc]

    assert caught.value.errors()[0]["type"] == "frozen_instance"


def test_world_size_is_the_product_of_the_axes() -> None:
    config = build_config(
        changed_settings(parallel={"tensor": 2, "pipeline": 2, "data": 2}, training__global_batch_size=16)
    )

    assert config.parallel.world_size == 8


def test_micro_batches_fill_the_global_batch() -> None:
    config = build_config(changed_settings(parallel__data=2, training__global_batch_size=32))

    assert config.num_micro_batches == 4


@pytest.mark.parametrize(
    ("vocab_size", "divisible_by", "tensor", "padded"),
    [(128, 128, 1, 128), (129, 128, 1, 256), (129, 1, 2, 130)],
)
def test_padding_is_the_smallest_multiple(
    vocab_size: int, divisible_by: int, tensor: int, padded: int
) -> None:
    assert padded_vocab_size(vocab_size, divisible_by=divisible_by, tensor=tensor) == padded


@pytest.mark.parametrize(
    ("vocab_size", "tensor", "padded"), [(2048, 2, 2048), (2049, 2, 2304), (1, 1, 128), (50257, 1, 50304)]
)
def test_vocabulary_is_padded_by_megatrons_rule(vocab_size: int, tensor: int, padded: int) -> None:
    config = build_config(changed_settings(parallel__tensor=tensor))

    assert config.padded_vocab_size(vocab_size) == padded


@pytest.mark.parametrize(
    ("method", "token", "rows"), [("pause", None, 257), ("pause", 7, 256), ("loop", None, 256)]
)
def test_a_pause_token_without_an_id_takes_a_row_behind_the_vocabulary(
    method: str, token: int | None, rows: int
) -> None:
    ponder = {"method": method} | ({} if token is None else {"pause_token_id": token})
    config = build_config(changed_settings(ponder=ponder))

    assert config.embedding_rows(256) == rows
    assert config.padded_vocab_size(256) == (384 if rows == 257 else 256)


@pytest.mark.parametrize(
    ("layers", "pipeline", "given", "stages"),
    [(2, 1, None, (2,)), (7, 3, None, (3, 2, 2)), (4, 4, None, (1, 1, 1, 1)), (5, 2, [1, 4], (1, 4))],
)
def test_layers_are_split_over_pipeline_stages(
    layers: int, pipeline: int, given: list[int] | None, stages: tuple[int, ...]
) -> None:
    config = build_config(
        changed_settings(
            model__num_layers=layers,
            parallel={"pipeline": pipeline, "layers_per_stage": given},
            training__global_batch_size=4 * pipeline,
        )
    )

    assert config.stage_layers == stages


def test_a_section_alone_is_checked_for_types_and_ranges_only() -> None:
    model = ModelConfig(
        architecture="llama", num_layers=3, hidden_size=66, ffn_hidden_size=7, num_attention_heads=4
    )

    assert model.kv_channels == 16


def test_a_configuration_made_in_code_obeys_the_rules_too() -> None:
    with pytest.raises(ValidationError, match=r"parallel\.tensor"):
        RunConfig.model_validate(changed_settings(parallel__tensor=3))

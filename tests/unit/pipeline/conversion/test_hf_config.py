import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.schema import ModelConfig
from pipeline.conversion.hf_config import parse_source, read_source, render_hf_config
from pipeline.shared.errors import ConversionError

# As EleutherAI publishes pythia-2.8b.
PYTHIA: dict[str, Any] = {
    "architectures": ["GPTNeoXForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "hidden_size": 2560,
    "initializer_range": 0.02,
    "intermediate_size": 10240,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "gpt_neox",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.24.0",
    "use_cache": True,
    "use_parallel_residual": True,
    "vocab_size": 50304,
}
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "max_position_embeddings": 2048,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 22,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 32000,
}
PONDERLM2 = {
    "recurrent_model": True,
    "num_latent_thoughts": 2,
    "num_jacobi_iterations": 3,
    "random_jacobi_iterations": True,
    "interpolation": False,
    "interpolation_use_topk": False,
    "scale_embeds": True,
}


def parse(values: dict[str, Any], **changes: Any) -> Any:
    merged = {**values, **changes}
    return parse_source(
        {key: value for key, value in merged.items() if value != "absent"}, origin="config.json"
    )


def complaint(values: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(ConversionError) as raised:
        parse(values, **changes)
    return str(raised.value)


def test_a_published_pythia_is_parsed() -> None:
    source = parse(PYTHIA)
    assert source.method == "vanilla"
    assert source.model == {
        "architecture": "gpt_neox",
        "num_layers": 32,
        "hidden_size": 2560,
        "ffn_hidden_size": 10240,
        "num_attention_heads": 32,
        "vocab_size": 50304,
        "max_position_embeddings": 2048,
        "rotary_percent": 0.25,
        "rotary_base": 10000,
        "norm_epsilon": 1e-5,
        "untie_embeddings_and_output_weights": True,
    }
    assert source.token_ids == {"bos_token_id": 0, "eos_token_id": 0}


def test_a_grouped_llama_is_parsed() -> None:
    model = parse(LLAMA).model
    assert (model["num_query_groups"], model["kv_channels"], model["rotary_base"]) == (4, 64, 500000)
    assert model["untie_embeddings_and_output_weights"] is False
    assert parse(LLAMA, head_dim=128).model["kv_channels"] == 128
    assert parse(LLAMA, num_key_value_heads="absent").model["num_query_groups"] == 32


def test_old_and_new_names_of_the_rotation_are_equivalent() -> None:
    new = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}
    bare = {**PYTHIA, "rotary_emb_base": "absent", "rotary_pct": "absent"}
    assert parse(bare, rope_parameters=new).model == parse(PYTHIA, rotary_emb_base=500, rotary_pct=0.5).model
    assert "rotary_emb_base 10000, rope_parameters.rope_theta 500.0" in complaint(
        PYTHIA, rope_parameters={"rope_theta": 500.0, "rope_type": "default"}
    )


# As transformers 4.4x saves a GPT-NeoX, under old names and new ones side by side.
NEOX_OF_2024: dict[str, Any] = {
    **PYTHIA,
    "attention_bias": True,
    "attention_dropout": 0.0,
    "classifier_dropout": 0.1,
    "hidden_dropout": 0.0,
    "partial_rotary_factor": 0.25,
    "rope_scaling": None,
    "rope_theta": 10000,
    "transformers_version": "4.48.0",
}
# As meta-llama publishes Llama-2-7b-hf: before grouped queries and bases had keys everywhere.
LLAMA_2: dict[str, Any] = {
    "_name_or_path": "meta-llama/Llama-2-7b-hf",
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
# As transformers saves a Llama that it read from a GGUF file.
LLAMA_OF_GGUF: dict[str, Any] = {
    **LLAMA_2,
    "_model_name_or_path": "Smollm2 135M 8k Lc100K Mix1 Ep2",
    "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
    "transformers_version": "5.23.0",
    "unk_token_id": 0,
}
LLAMA_OF_2024: dict[str, Any] = {
    **LLAMA,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "use_cache": True,
}


@pytest.mark.parametrize("old", [PYTHIA, NEOX_OF_2024, LLAMA, LLAMA_2, LLAMA_OF_2024, LLAMA_OF_GGUF])
def test_an_older_configuration_resaved_by_transformers_is_equivalent(
    old: dict[str, Any], tmp_path: Path
) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[old["model_type"]].from_dict(old)
    config.save_pretrained(tmp_path)
    everything = json.loads(config.to_json_string(use_diff=False))

    source = parse(old)
    for new in (read_source(tmp_path), parse(everything)):
        assert new.model == source.model
        assert new.method == source.method
    assert "rope_parameters" in everything


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}},
        {"rope_theta": "absent", "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
        {
            "rope_theta": "absent",
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "factor": 4.0},
        },
    ],
)
def test_scaled_rotations_are_rejected(scaling: dict[str, Any]) -> None:
    assert f"{list(scaling)[-1]}: " in complaint(LLAMA, **scaling)


def test_all_problems_are_reported_together() -> None:
    text = complaint(
        PYTHIA,
        hidden_act="gelu_new",
        use_parallel_residual=False,
        num_hidden_layers="absent",
        attention_dropout=0.1,
        quantization_config={"bits": 4},
        vocab_size=-1,
        rotary_emb_base=10000.5,
        auto_map={"AutoModelForCausalLM": "code.Model"},
    )
    assert text.startswith("8 problem(s)")
    for part in (
        "hidden_act: ",
        "'gelu_new'",
        "use_parallel_residual: ",
        "num_hidden_layers: ",
        "attention_dropout: ",
        "quantization_config: ",
        "vocab_size: ",
        "10000.5",
        "auto_map: ",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"attention_bias": True}, "attention_bias: "),
        ({"mlp_bias": True}, "mlp_bias: "),
        ({"pretraining_tp": 2}, "pretraining_tp: "),
        ({"hidden_act": "gelu"}, "hidden_act: "),
        ({"sliding_window": 128}, "sliding_window: "),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: "),
        ({"architectures": ["LlamaModel"]}, "architectures: "),
        ({"recurrent_model": True}, "num_latent_thoughts, num_jacobi_iterations"),
        ({"scale_embeds": True}, "scale_embeds: "),
    ],
)
def test_unsupported_settings_of_llama_are_rejected(changes: dict[str, Any], part: str) -> None:
    assert part in complaint(LLAMA, **changes)


def test_another_architecture_is_rejected() -> None:
    text = complaint(PYTHIA, model_type="gpt2")
    assert all(kind in text for kind in ("model_type", "gpt_neox", "llama", "megaponder", "'gpt2'"))


def test_the_flags_of_published_ponderlm2_models_become_settings() -> None:
    source = parse(
        PYTHIA, **PONDERLM2, auto_map={"AutoModelForCausalLM": "modeling_gpt_neox.GPTNeoXForCausalLM"}
    )
    assert source.ponder == {
        "method": "ponderlm2",
        "num_latent_thoughts": 2,
        "num_jacobi_iterations": 3,
        "random_jacobi_iterations": [2, 4],
        "scale_embeds": True,
        "mixture": "hidden",
    }
    llama = parse(LLAMA, **{**PONDERLM2, "interpolation": True, "interpolation_use_topk": True})
    assert llama.ponder["random_jacobi_iterations"] == [2, 3]
    assert llama.ponder["mixture"] == "top_k"


def test_a_key_is_ignored_only_on_request(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**PYTHIA, "house_style": 3}))
    with pytest.raises(ConversionError, match="--ignore house_style"):
        read_source(tmp_path)
    assert "house_style" not in read_source(tmp_path, ignored=["house_style"]).values
    with pytest.raises(ConversionError, match="hidden_style"):
        read_source(tmp_path, ignored=["hidden_style"])


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_damaged_configuration_is_rejected(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConversionError, match=r"config\.json"):
        read_source(tmp_path)


@pytest.mark.parametrize("values", [PYTHIA, LLAMA, {**LLAMA, "pad_token_id": 3}])
def test_a_written_configuration_is_read_back_unchanged(values: dict[str, Any]) -> None:
    source = parse(values)
    model = ModelConfig.model_validate(
        {key: value for key, value in source.model.items() if value is not None}
    )
    written = render_hf_config(
        model, vocab_size=source.model["vocab_size"], dtype="float16", token_ids=source.token_ids
    )
    again = parse_source(written, origin="written")
    assert again.model == source.model
    given = {key: value for key, value in again.token_ids.items() if value is not None}
    assert given == dict(source.token_ids)

import pytest
import torch
from torch import Tensor

from megatron_ext.model.config import Architecture
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.config import Method
from megatron_ext.weights import TensorNamesError, load_weights, whole_tensors
from tests.support.ponder_models import (
    HIDDEN_SIZE,
    VOCAB_SIZE,
    each_method,
    each_model,
    random_weights,
    tiny_model,
)


def weights_of(model: PonderModel) -> dict[str, Tensor]:
    return whole_tensors(model, lambda parameter: parameter)


@each_model
@pytest.mark.parametrize("tied", [False, True])
def test_loaded_tensors_come_back_bit_equal(
    groups: ParallelGroups, method: Method, architecture: Architecture, tied: bool
) -> None:
    model = tiny_model(groups, method, architecture, tie_embeddings=tied)
    other = random_weights(model, seed=9)
    assert any(not torch.equal(value, other[name]) for name, value in weights_of(model).items())

    load_weights(model, other)

    found = weights_of(model)
    assert found.keys() == other.keys()
    assert all(torch.equal(found[name], other[name]) for name in other)
    head = {"llama": "lm_head.weight", "gpt_neox": "embed_out.weight"}[architecture]
    assert (head in found) != tied


@each_model
def test_every_parameter_has_names_and_every_number_is_gathered(
    groups: ParallelGroups, method: Method, architecture: Architecture
) -> None:
    model = tiny_model(groups, method, architecture)

    whole = weights_of(model)

    # The padding rows of embedding and head are the model's own.
    config = model.config
    padding = HIDDEN_SIZE * (2 * config.padded_vocab_size - VOCAB_SIZE - config.embedding_rows)
    assert sum(x.numel() for x in whole.values()) == sum(p.numel() for p in model.parameters()) - padding


def test_shapes_are_those_of_hugging_face(groups: ParallelGroups) -> None:
    neox, llama = (weights_of(tiny_model(groups, "ponderlm3", architecture)) for architecture in Architecture)

    # Four query heads of eight channels share two key/value heads.
    attention = "model.layers.1.self_attn"
    assert llama[f"{attention}.q_proj.weight"].shape == (32, HIDDEN_SIZE)
    assert llama[f"{attention}.k_proj.weight"].shape == (16, HIDDEN_SIZE)
    assert llama[f"{attention}.v_proj.weight"].shape == (16, HIDDEN_SIZE)
    assert llama["model.layers.0.mlp.up_proj.weight"].shape == (52, HIDDEN_SIZE)
    assert llama["model.embed_tokens.weight"].shape == (VOCAB_SIZE, HIDDEN_SIZE)
    assert neox["gpt_neox.layers.0.attention.query_key_value.weight"].shape == (96, HIDDEN_SIZE)
    assert neox["ponder.router.0.weight"].shape == (8, HIDDEN_SIZE)
    assert neox["ponder.router.2.bias"].shape == (3,)
    gated = weights_of(tiny_model(groups, "adaponderlm"))
    assert gated["ponder.gates.1.0.weight"].shape == (4 * HIDDEN_SIZE, HIDDEN_SIZE)
    assert gated["ponder.gates.1.2.bias"].shape == (1,)
    pausing = weights_of(tiny_model(groups, "pause"))
    assert pausing["model.embed_tokens.weight"].shape == (VOCAB_SIZE + 1, HIDDEN_SIZE)
    assert pausing["lm_head.weight"].shape == (VOCAB_SIZE, HIDDEN_SIZE)


@each_method
def test_padding_rows_are_cleared(groups: ParallelGroups, method: Method) -> None:
    model = tiny_model(groups, method)

    load_weights(model, random_weights(model, seed=9))

    embedding, head = model.embedding.word_embeddings.weight, model.output_layer.weight
    assert (embedding[model.config.embedding_rows :] == 0).all()
    assert (head[VOCAB_SIZE:] == 0).all()


def test_missing_and_unexpected_tensors_are_reported_together(groups: ParallelGroups) -> None:
    model = tiny_model(groups, "ponderlm3")
    tensors = weights_of(model)
    del tensors["ponder.router.2.bias"], tensors["model.norm.weight"]
    tensors["model.layers.9.mlp.up_proj.weight"] = torch.zeros(1)

    with pytest.raises(TensorNamesError) as failure:
        load_weights(model, tensors)

    assert failure.value.missing == ["model.norm.weight", "ponder.router.2.bias"]
    assert failure.value.unexpected == ["model.layers.9.mlp.up_proj.weight"]


def test_a_refused_load_changes_nothing(groups: ParallelGroups) -> None:
    model = tiny_model(groups, "vanilla")
    before = {name: value.clone() for name, value in weights_of(model).items()}

    with pytest.raises(TensorNamesError):
        load_weights(model, {name: value + 1 for name, value in before.items()} | {"other": torch.zeros(1)})

    assert all(torch.equal(value, before[name]) for name, value in weights_of(model).items())


def test_a_tensor_of_another_shape_is_refused(groups: ParallelGroups) -> None:
    model = tiny_model(groups, "vanilla")
    tensors = weights_of(model) | {"model.norm.weight": torch.ones(HIDDEN_SIZE + 1)}

    with pytest.raises((ValueError, RuntimeError), match="size"):
        load_weights(model, tensors)


def test_values_other_than_weights_are_gathered_too(groups: ParallelGroups) -> None:
    model = tiny_model(groups, "ponderlm3")

    doubled = whole_tensors(model, lambda parameter: 2 * parameter)

    assert all(torch.equal(doubled[name], 2 * value) for name, value in weights_of(model).items())

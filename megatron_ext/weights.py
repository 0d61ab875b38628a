"""Load and gather a model's weights as complete tensors under Hugging Face names, on any parallel layout.

A backbone parameter of the model is made of one or several Hugging Face tensors. Each :class:`Entry` says
which, and how they are joined and split; how a parameter is sharded over ranks follows from the attributes
that Megatron sets on it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from megatron_ext.model.config import Architecture, PonderTransformerConfig
from megatron_ext.model.model import PonderModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One parameter of the model and the Hugging Face tensors it is made of.

    Attributes:
        native: name in the model.
        sources: Hugging Face names.
        join: Hugging Face tensors -> complete native tensor.
        split: complete native tensor -> Hugging Face tensors.
        vocabulary_rows: rows of dim 0 in use, where it is the padded vocabulary; else None.
    """

    native: str
    sources: tuple[str, ...]
    join: Callable[..., Tensor]
    split: Callable[[Tensor], tuple[Tensor, ...]]
    vocabulary_rows: int | None = None


def entries(config: PonderTransformerConfig) -> Iterator[Entry]:
    """Yield an entry for every parameter of a model, in order."""
    if config.architecture is Architecture.GPT_NEOX:
        yield from _neox_entries(config)
    else:
        yield from _llama_entries(config)
    yield from _method_entries(config)


class TensorNamesError(ValueError):
    """Tensors are not exactly those of the model."""

    def __init__(self, missing: list[str], unexpected: list[str]) -> None:
        super().__init__(
            f"the tensors must be exactly those of the model: missing {missing or 'none'}, "
            f"unexpected {unexpected or 'none'}"
        )
        self.missing = missing
        self.unexpected = unexpected


@torch.no_grad()
def load_weights(model: PonderModel, tensors: Mapping[str, Tensor]) -> None:
    """Copy complete tensors into the model.

    Args:
        model: on any parallel layout.
        tensors: exactly the tensors of the model, by Hugging Face name.
    Raises:
        TensorNamesError: some are missing or unexpected; the model is unchanged.
    """
    table = list(entries(model.config))
    wanted = {source for entry in table for source in entry.sources}
    missing, unexpected = sorted(wanted - tensors.keys()), sorted(tensors.keys() - wanted)
    if missing or unexpected:
        raise TensorNamesError(missing, unexpected)
    parameters = _parameters_by_name(model)
    for entry in table:
        for parameter in parameters.get(entry.native, ()):
            whole = entry.join(*(tensors[source] for source in entry.sources))
            if entry.vocabulary_rows is not None:
                whole = functional.pad(whole, (0, 0, 0, model.config.padded_vocab_size - whole.shape[0]))
            parameter.copy_(_own_part(whole, parameter, model))


def whole_tensors(model: PonderModel, value_of: Callable[[torch.nn.Parameter], Tensor]) -> dict[str, Tensor]:
    """Gather one value per parameter under Hugging Face names, complete on every rank.

    Args:
        model: on any parallel layout.
        value_of: parameter -> tensor of its shape, such as the parameter itself or its gradient.
    """
    parameters = _parameters_by_name(model)
    whole: dict[str, Tensor] = {}
    for entry in entries(model.config):
        for parameter in parameters.get(entry.native, ())[:1]:
            native = _gathered(value_of(parameter).detach(), parameter, model)
            whole |= zip(entry.sources, entry.split(native[: entry.vocabulary_rows]), strict=True)
    return _of_all_stages(whole, model)


def _parameters_by_name(model: PonderModel) -> dict[str, list[torch.nn.Parameter]]:
    """Return parameters by their name in a model of one stage; a copy is listed with its original."""
    parameters: dict[str, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        parameters.setdefault(_name_on_one_stage(name, model), []).append(parameter)
    return parameters


def _name_on_one_stage(name: str, model: PonderModel) -> str:
    embedding = "embedding.word_embeddings.weight"
    if name == f"mixture_{embedding}" or (name == "output_layer.weight" and model.config.tie_embeddings):
        return embedding
    prefix, layers, rest = name.partition("decoder.layers.")
    if not layers:
        return name
    index, _, inner = rest.partition(".")
    return f"{prefix}{layers}{int(index) + model.config.layer_offset}.{inner}"


def _of_all_stages(tensors: dict[str, Tensor], model: PonderModel) -> dict[str, Tensor]:
    if model.pp_group.size() == 1:
        return tensors
    of_stages: list[dict[str, Tensor]] = [{} for _ in range(model.pp_group.size())]
    # By way of the host: a tensor of a device would arrive on the device of the rank that has sent it.
    sent = {name: tensor.cpu() for name, tensor in tensors.items()}
    torch.distributed.all_gather_object(of_stages, sent, group=model.pp_group)
    place = next(model.parameters()).device
    return {name: tensor.to(place) for stage in of_stages for name, tensor in stage.items()}


def _is_split(parameter: torch.nn.Parameter) -> bool:
    return bool(getattr(parameter, "tensor_model_parallel", False))


def _own_part(whole: Tensor, parameter: torch.nn.Parameter, model: PonderModel) -> Tensor:
    size = model.axis.size
    if size == 1 or not _is_split(parameter):
        return whole
    dim, stride = parameter.partition_dim, parameter.partition_stride  # type: ignore[attr-defined]
    return torch.cat(whole.chunk(size * stride, dim)[model.axis.rank :: size], dim)


def _gathered(part: Tensor, parameter: torch.nn.Parameter, model: PonderModel) -> Tensor:
    size = model.axis.size
    if size == 1 or not _is_split(parameter):
        return part
    parts = [torch.empty_like(part) for _ in range(size)]
    torch.distributed.all_gather(parts, part.contiguous(), group=model.axis.group)
    dim, stride = parameter.partition_dim, parameter.partition_stride  # type: ignore[attr-defined]
    # With a stride every rank holds one piece of each of the `stride` blocks.
    pieces = [rank_part.chunk(stride, dim) for rank_part in parts]
    return torch.cat([pieces[rank][block] for block in range(stride) for rank in range(size)], dim)


def _same(native: str, source: str, *, vocabulary_rows: int | None = None) -> Entry:
    return Entry(
        native=native,
        sources=(source,),
        join=lambda tensor: tensor,
        split=lambda tensor: (tensor,),
        vocabulary_rows=vocabulary_rows,
    )


def _with_bias(native: str, source: str) -> Iterator[Entry]:
    for kind in ("weight", "bias"):
        yield _same(f"{native}.{kind}", f"{source}.{kind}")


def _neox_entries(config: PonderTransformerConfig) -> Iterator[Entry]:
    # GPT-NeoX stores q, k and v of a head together, which is Megatron's order for plain multi-head attention.
    yield _same(
        "embedding.word_embeddings.weight", "gpt_neox.embed_in.weight", vocabulary_rows=config.embedding_rows
    )
    for index in range(config.num_layers):
        native, source = f"decoder.layers.{index}", f"gpt_neox.layers.{index}"
        yield from _with_bias(f"{native}.input_layernorm", f"{source}.input_layernorm")
        yield from _with_bias(f"{native}.pre_mlp_layernorm", f"{source}.post_attention_layernorm")
        yield from _with_bias(f"{native}.self_attention.linear_qkv", f"{source}.attention.query_key_value")
        yield from _with_bias(f"{native}.self_attention.linear_proj", f"{source}.attention.dense")
        yield from _with_bias(f"{native}.mlp.linear_fc1", f"{source}.mlp.dense_h_to_4h")
        yield from _with_bias(f"{native}.mlp.linear_fc2", f"{source}.mlp.dense_4h_to_h")
    yield from _with_bias("final_norm", "gpt_neox.final_layer_norm")
    if not config.tie_embeddings:
        yield _same("output_layer.weight", "embed_out.weight", vocabulary_rows=config.vocab_size)


def _llama_entries(config: PonderTransformerConfig) -> Iterator[Entry]:
    yield _same(
        "embedding.word_embeddings.weight", "model.embed_tokens.weight", vocabulary_rows=config.embedding_rows
    )
    for index in range(config.num_layers):
        native, source = f"decoder.layers.{index}", f"model.layers.{index}"
        yield _same(f"{native}.input_layernorm.weight", f"{source}.input_layernorm.weight")
        yield _same(f"{native}.pre_mlp_layernorm.weight", f"{source}.post_attention_layernorm.weight")
        yield _grouped_qkv(config, f"{native}.self_attention.linear_qkv.weight", f"{source}.self_attn")
        yield _same(f"{native}.self_attention.linear_proj.weight", f"{source}.self_attn.o_proj.weight")
        yield Entry(
            native=f"{native}.mlp.linear_fc1.weight",
            sources=(f"{source}.mlp.gate_proj.weight", f"{source}.mlp.up_proj.weight"),
            join=lambda gate, up: torch.cat([gate, up]),
            split=lambda joined: tuple(joined.chunk(2)),
        )
        yield _same(f"{native}.mlp.linear_fc2.weight", f"{source}.mlp.down_proj.weight")
    yield _same("final_norm.weight", "model.norm.weight")
    if not config.tie_embeddings:
        yield _same("output_layer.weight", "lm_head.weight", vocabulary_rows=config.vocab_size)


def _grouped_qkv(config: PonderTransformerConfig, native: str, source: str) -> Entry:
    """Megatron interleaves by key/value group: the group's queries, its key, its value."""
    groups, head_size = config.num_query_groups, config.kv_channels
    queries = config.num_attention_heads // groups

    def join(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # [heads * d, H] -> [groups, heads per group * d, H]
        parts = [x.unflatten(0, (groups, -1)) for x in (query, key, value)]
        return torch.cat(parts, dim=1).flatten(0, 1)

    def split(joined: Tensor) -> tuple[Tensor, ...]:
        parts = joined.unflatten(0, (groups, -1)).split([queries * head_size, head_size, head_size], dim=1)
        return tuple(part.flatten(0, 1) for part in parts)

    names = tuple(f"{source}.{part}_proj.weight" for part in "qkv")
    return Entry(native=native, sources=names, join=join, split=split)


def _method_entries(config: PonderTransformerConfig) -> Iterator[Entry]:
    decider = config.ponder.decider
    if decider is None:
        return
    for network in decider.prefixes(config.ponder.num_latent_thoughts):
        for layer in decider.layers:
            name = f"{network}.{layer}".removesuffix(".")
            yield from _with_bias(name, name)

"""Check the tensors of a Hugging Face folder against those of the model, before anything is written."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from megatron_ext.model.config import PonderTransformerConfig
from megatron_ext.weights import Entry, entries
from pipeline.conversion.hf_weights import HuggingFaceWeights
from pipeline.conversion.shapes import expected_shape
from pipeline.shared.errors import ConversionError

_SHOWN = 20
_MORE_THAN_STORED = 10_000
# Masks and rotary frequencies, which older versions of transformers stored: the settings determine them.
_COMPUTED = re.compile(
    r"(gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)"
    r"|model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"
    r"|gpt_neox\.rotary_emb\.inv_freq)"
)
_HEADS = {"embed_out.weight": "gpt_neox.embed_in.weight", "lm_head.weight": "model.embed_tokens.weight"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """The tensors of a folder, sorted by their use.

    Attributes:
        present: parameters whose tensors are in the folder.
        absent: parameters of the method's own networks, if the folder has none of them.
        tied_copies: tensors that must repeat the embedding.
        computed: tensors that the settings determine.
    """

    present: Sequence[Entry]
    absent: Sequence[Entry]
    tied_copies: Sequence[str]
    computed: Sequence[str]


def is_computed(name: str) -> bool:
    """Return whether the settings determine a tensor."""
    return _COMPUTED.fullmatch(name) is not None


def inspect(weights: HuggingFaceWeights, config: PonderTransformerConfig) -> Findings:
    """Sort the tensors of a folder.

    Raises:
        ConversionError: lists everything that is missing, unexpected, or of an unexpected shape or type.
    """
    found = weights.tensors
    table = entries_up_to(config, len(found), origin=str(weights.folder))
    has_networks = any(name.startswith("ponder.") for name in found)
    absent = [] if has_networks else [entry for entry in table if entry.native.startswith("ponder.")]
    present = [entry for entry in table if entry not in absent]
    wanted = {source for entry in present for source in entry.sources}
    computed = sorted(name for name in found.keys() - wanted if is_computed(name))
    tied = sorted(name for name in found.keys() - wanted if config.tie_embeddings and name in _HEADS)
    problems = [
        *_listed("missing", wanted - found.keys()),
        *_listed("unexpected", found.keys() - wanted - set(computed) - set(tied)),
        *_misfits(weights, config, sorted((wanted | set(tied)) & found.keys())),
        *_mixed(weights, present),
    ]
    if problems:
        raise ConversionError(
            "\n".join(
                [
                    f"{weights.folder} must hold the tensors that its config.json describes, for the method "
                    f"{config.ponder.method}, but:",
                    *(f"  - {problem}" for problem in problems),
                ]
            )
        )
    return Findings(present=present, absent=absent, tied_copies=tied, computed=computed)


def entries_up_to(config: PonderTransformerConfig, num_stored: int, *, origin: str) -> list[Entry]:
    """Return the parameters of a model, unless there are absurdly many more than tensors are stored.

    Raises:
        ConversionError: there are.
    """
    limit = 2 * num_stored + _MORE_THAN_STORED
    table = list(islice(entries(config), limit + 1))
    if len(table) > limit:
        raise ConversionError(
            f"{origin} must hold the tensors of its model, but the settings describe {config.num_layers:,} "
            f"layers with more than {limit:,} tensors, and {num_stored:,} are stored; use another copy of it"
        )
    return table


def check_tied_copies(weights: HuggingFaceWeights, names: Sequence[str]) -> None:
    """Check that a head stored in addition to a tied embedding equals the embedding.

    Raises:
        ConversionError: it does not.
    """
    for name in names:
        if not torch.equal(weights.read(name), weights.read(_HEADS[name])):
            raise ConversionError(
                f"{name} must equal {_HEADS[name]}, as config.json ties them, but differs; set "
                "tie_word_embeddings: false there if the head is separate"
            )


def _listed(what: str, names: set[str]) -> Iterator[str]:
    if names:
        shown = sorted(names)
        more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
        yield f"{len(shown)} {what}: {', '.join(shown[:_SHOWN])}{more}"


def _misfits(weights: HuggingFaceWeights, config: PonderTransformerConfig, names: list[str]) -> Iterator[str]:
    for name in names:
        stored = weights.tensors[name]
        # A tied copy has the shape of a head.
        expected = expected_shape(name, config)
        if tuple(stored.shape) != expected:
            yield f"{name} has the shape {tuple(stored.shape)}, not {expected}"
        if stored.dtype is None:
            yield f"{name} must be float32, float16 or bfloat16"


def _mixed(weights: HuggingFaceWeights, present: Sequence[Entry]) -> Iterator[str]:
    for entry in present:
        types = {str(weights.tensors[name].dtype) for name in entry.sources if name in weights.tensors}
        if len(types) > 1:
            yield (
                f"{', '.join(entry.sources)} are merged, but have different types: {', '.join(sorted(types))}"
            )

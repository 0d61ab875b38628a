"""Settings of a model in a Hugging Face ``config.json``, read key by key, and written.

Nothing is guessed: a key that is not known here is an error, and so is a value that the model of this program
does not have. What an absent key stands for is what the configuration classes of transformers document.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ext.ponder.config import Method, Mixture
from pipeline.config.errors import as_written
from pipeline.config.schema import ModelConfig
from pipeline.conversion.errors import ConversionError

CONFIG_JSON = "config.json"
DEFAULT_ROTARY_BASE = 10000
# Say nothing about what the weights compute: names, generation, the training that is over.
_BOOKKEEPING = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_commit_hash",
        "_name_or_path",
        "classifier_dropout",
        "dtype",
        "initializer_range",
        "is_decoder",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "tokenizer_class",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_CLASSES = {"gpt_neox": "GPTNeoXForCausalLM", "llama": "LlamaForCausalLM"}
# J where the published PonderLM-2 code draws it (definitions 2.3).
_RANDOM_SWEEPS = {"gpt_neox": [2, 4], "llama": [2, 3]}


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceModel:
    """What a config.json says.

    Attributes:
        values: as read, less what was to be ignored.
        model: settings of the group `model`.
        ponder: settings of the group `ponder`, among them the method.
        token_ids: bos_token_id and the like, as far as given.
    """

    values: Mapping[str, Any]
    model: Mapping[str, Any]
    ponder: Mapping[str, Any]
    token_ids: Mapping[str, Any]

    @property
    def method(self) -> Method:
        """Whose weights these are."""
        return Method(self.ponder["method"])


def read_source(folder: Path, *, ignored: Sequence[str] = ()) -> SourceModel:
    """Read the config.json of a folder.

    Args:
        folder: of the model.
        ignored: keys that the user says mean nothing here.
    Raises:
        ConversionError: with everything that is unknown or unsupported.
    """
    values = _read(folder / CONFIG_JSON)
    absent = sorted(set(ignored) - values.keys())
    if absent:
        raise ConversionError(
            f"--ignore must name keys of {folder / CONFIG_JSON}, but it has no {', '.join(absent)}; leave "
            "it out"
        )
    values = {key: value for key, value in values.items() if key not in ignored}
    return parse_source(values, origin=str(folder / CONFIG_JSON))


def parse_source(values: Mapping[str, Any], *, origin: str) -> SourceModel:
    """Understand a configuration.

    Args:
        values: of a config.json.
        origin: named in errors.
    Raises:
        ConversionError: with everything that is unknown or unsupported.
    """
    architecture = values.get("model_type")
    if architecture not in _CLASSES:
        raise ConversionError(
            f"{origin}: model_type must be one of {', '.join(_CLASSES)}, but is {as_written(architecture)}; "
            "only these two architectures can be converted"
        )
    keys = _Keys(values)
    keys.take("model_type")
    ponder = _ponder(keys, architecture)
    token_ids = {key: keys.take(key) for key in _TOKEN_IDS if key in values}
    model = _sizes(keys) | _rotary(keys, architecture)
    model |= _neox(keys, model) if architecture == "gpt_neox" else _llama(keys, model, token_ids)
    model |= {
        "architecture": architecture,
        "untie_embeddings_and_output_weights": not keys.switch("tie_word_embeddings"),
    }
    keys.refuse_others()
    if keys.problems:
        raise ConversionError(
            "\n".join(
                [f"{len(keys.problems)} problem(s) in {origin}:", *(f"  - {text}" for text in keys.problems)]
            )
        )
    return SourceModel(values=values, model=model, ponder=ponder, token_ids=token_ids)


def render_hf_config(
    model: ModelConfig, *, vocab_size: int, dtype: str, token_ids: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the config.json of a vanilla model, in the keys that old and new transformers read.

    Args:
        model: the backbone.
        vocab_size: rows of embedding and head.
        dtype: name of the weights' type, such as ``bfloat16``.
        token_ids: bos_token_id and the like; absent ones are written as null.
    """
    common = {
        "architectures": [_CLASSES[model.architecture]],
        "model_type": model.architecture,
        "vocab_size": vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "max_position_embeddings": model.max_position_embeddings,
        "tie_word_embeddings": not model.untie_embeddings_and_output_weights,
        "torch_dtype": dtype,
        "use_cache": True,
    }
    ids = {key: token_ids.get(key) for key in _TOKEN_IDS}
    if model.architecture == "gpt_neox":
        return (
            common
            | ids
            | {
                "hidden_act": "gelu",
                "layer_norm_eps": model.norm_epsilon,
                "rotary_pct": model.rotary_percent,
                "rotary_emb_base": model.rotary_base,
                "use_parallel_residual": True,
                "attention_bias": True,
            }
        )
    return (
        common
        | ids
        | {
            "hidden_act": "silu",
            "rms_norm_eps": model.norm_epsilon,
            "num_key_value_heads": model.num_query_groups,
            "head_dim": model.kv_channels,
            "rope_theta": float(model.rotary_base),
            "attention_bias": False,
            "mlp_bias": False,
            "pad_token_id": model.padding_token_id,
        }
    )


class _Keys:
    """The keys of a config.json, each to be asked for once; what is left in the end is unknown."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._left = {key: value for key, value in values.items() if key not in _BOOKKEEPING}
        self.problems: list[str] = []

    def take(self, key: str, default: Any = None) -> Any:
        return self._left.pop(key, default)

    def count(self, key: str, default: int | None = None) -> int:
        return int(self._number(key, default, kinds=(int,), what="a whole number of at least 1"))

    def positive(self, key: str, default: float | None = None) -> float:
        return float(self._number(key, default, kinds=(int, float), what="a number above 0"))

    def switch(self, key: str, default: bool = False) -> bool:
        value = self.take(key, default)
        if not isinstance(value, bool):
            self.problems.append(f"{key}: must be true or false, but is {as_written(value)}")
        return bool(value)

    def expect(self, key: str, expected: Any, *, why: str) -> None:
        value = self.take(key, expected)
        if value != expected:
            self.problems.append(f"{key}: must be {as_written(expected)}, but is {as_written(value)}; {why}")

    def refuse_others(self) -> None:
        self.problems += [
            f"{key}: is unknown (value {as_written(value)}); if it means nothing for the weights, say "
            f"--ignore {key}"
            for key, value in sorted(self._left.items())
        ]

    def _number(self, key: str, default: Any, *, kinds: tuple[type, ...], what: str) -> Any:
        value = self.take(key, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or type(value) not in kinds
            or value <= 0
        ):
            found = "is absent" if value is None else f"is {as_written(value)}"
            self.problems.append(f"{key}: must be {what}, but {found}")
            return 1
        return value


def _sizes(keys: _Keys) -> dict[str, Any]:
    for key in ("attention_dropout", "hidden_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob"):
        keys.expect(key, 0.0, why="there is no dropout here")
    return {
        "vocab_size": keys.count("vocab_size"),
        "hidden_size": keys.count("hidden_size"),
        "ffn_hidden_size": keys.count("intermediate_size"),
        "num_layers": keys.count("num_hidden_layers"),
        "num_attention_heads": keys.count("num_attention_heads"),
        "max_position_embeddings": keys.count("max_position_embeddings", 2048),
    }


def _neox(keys: _Keys, model: Mapping[str, Any]) -> dict[str, Any]:
    keys.expect("hidden_act", "gelu", why="only the exact GELU is there for gpt_neox")
    keys.expect("use_parallel_residual", True, why="attention and MLP work side by side here")
    keys.expect("attention_bias", True, why="every linear layer of gpt_neox has a bias here")
    heads = model["num_attention_heads"]
    if model["hidden_size"] % heads:
        keys.problems.append(
            f"hidden_size: must be a multiple of num_attention_heads ({heads}), but is {model['hidden_size']}"
        )
    return {"norm_epsilon": keys.positive("layer_norm_eps", 1e-5)}


def _llama(keys: _Keys, model: Mapping[str, Any], token_ids: Mapping[str, Any]) -> dict[str, Any]:
    keys.expect("hidden_act", "silu", why="only SwiGLU is there for llama")
    for key in ("attention_bias", "mlp_bias"):
        keys.expect(key, False, why="linear layers of llama have no biases here")
    keys.expect("pretraining_tp", 1, why="sums in slices are not made here")
    heads = model["num_attention_heads"]
    padding = token_ids.get("pad_token_id")
    # Older transformers wrote -1 for "none".
    has_padding = isinstance(padding, int) and padding >= 0
    head_size = keys.take("head_dim")
    return {
        "norm_epsilon": keys.positive("rms_norm_eps", 1e-6),
        "num_query_groups": keys.count("num_key_value_heads", heads),
        "kv_channels": model["hidden_size"] // heads if head_size is None else head_size,
        "padding_token_id": padding if has_padding else None,
    }


def _rotary(keys: _Keys, architecture: str) -> dict[str, Any]:
    """Base and share of the rotation, under whichever of their names; scaling is refused."""
    is_neox = architecture == "gpt_neox"
    new = _unscaled(keys, "rope_parameters")
    scaled = _unscaled(keys, "rope_scaling")
    names = ("rope_theta", "rotary_emb_base") if is_neox else ("rope_theta",)
    bases = {name: keys.take(name) for name in names} | {
        "rope_parameters.rope_theta": new.get("rope_theta"),
        "rope_scaling.rope_theta": scaled.get("rope_theta"),
    }
    names = ("rotary_pct", "partial_rotary_factor") if is_neox else ("partial_rotary_factor",)
    shares = {name: keys.take(name) for name in names} | {
        "rope_parameters.partial_rotary_factor": new.get("partial_rotary_factor")
    }
    base = _agreed(keys, bases, DEFAULT_ROTARY_BASE)
    if not isinstance(base, int | float) or base != int(base) or base < 1:
        keys.problems.append(f"rope_theta: must be a whole number of at least 1, but is {as_written(base)}")
        base = DEFAULT_ROTARY_BASE
    share = _agreed(keys, shares, 0.25 if is_neox else 1.0)
    if not is_neox and share != 1:
        keys.problems.append(f"partial_rotary_factor: must be 1 for llama, but is {as_written(share)}")
    return {"rotary_base": int(base), "rotary_percent": float(share)}


def _unscaled(keys: _Keys, key: str) -> Mapping[str, Any]:
    """Return a description of the rotation that scales nothing."""
    given = keys.take(key)
    if given is None:
        return {}
    if not isinstance(given, dict):
        keys.problems.append(f"{key}: must be null or a group, but is {as_written(given)}")
        return {}
    kind = given.get("rope_type", given.get("type", "default"))
    others = sorted(given.keys() - {"rope_type", "type", "rope_theta", "partial_rotary_factor"})
    if kind != "default" or others:
        keys.problems.append(
            f"{key}: must not scale rotary positions, but is {json.dumps(given)}; such a model cannot be "
            "converted"
        )
    return given


def _agreed(keys: _Keys, given: Mapping[str, Any], default: float) -> Any:
    """Return the one value that a setting with several names has."""
    values = {name: value for name, value in given.items() if value is not None}
    if len(set(values.values())) > 1:
        listed = ", ".join(f"{name} {as_written(value)}" for name, value in values.items())
        keys.problems.append(
            f"{next(iter(values))}: must be said once or everywhere the same, but there is {listed}"
        )
    return next(iter(values.values()), default)


def _ponder(keys: _Keys, architecture: str) -> dict[str, Any]:
    """The method: PonderLM-2 where the flags of its published code say so, else the plain model."""
    is_recurrent = keys.switch("recurrent_model")
    flags = {
        name: keys.take(name)
        for name in (
            "num_latent_thoughts",
            "num_jacobi_iterations",
            "random_jacobi_iterations",
            "interpolation",
            "interpolation_use_topk",
            "scale_embeds",
        )
    }
    classes, code = keys.take("architectures"), keys.take("auto_map")
    if is_recurrent:
        return _ponderlm2(keys, flags, architecture)
    if classes not in (None, [_CLASSES[architecture]]):
        keys.problems.append(
            f"architectures: must be [{_CLASSES[architecture]}], but is {as_written(classes)}; another "
            "class has "
            "other weights"
        )
    if code is not None:
        keys.problems.append(
            "auto_map: must be absent, but names code of the model's own, which may compute anything; if it "
            "is the "
            "stock class after all, say --ignore auto_map"
        )
    keys.problems += [
        f"{name}: must be absent without recurrent_model, but is {as_written(value)}"
        for name, value in flags.items()
        if value not in (None, False)
    ]
    return {"method": Method.VANILLA.value}


def _ponderlm2(keys: _Keys, flags: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    absent = [name for name, value in flags.items() if value is None and name != "interpolation_use_topk"]
    if absent:
        keys.problems.append(
            f"recurrent_model: a PonderLM-2 model must say {', '.join(absent)} too, but does not; add what "
            "it was "
            "trained with"
        )
    mixture = Mixture.TOP_K if flags["interpolation_use_topk"] else Mixture.SOFTMAX
    settings = {
        "method": Method.PONDERLM2.value,
        "num_latent_thoughts": flags["num_latent_thoughts"],
        "num_jacobi_iterations": flags["num_jacobi_iterations"],
        "scale_embeds": flags["scale_embeds"],
        "mixture": (mixture if flags["interpolation"] else Mixture.HIDDEN).value,
    }
    if flags["random_jacobi_iterations"]:
        settings["random_jacobi_iterations"] = _RANDOM_SWEEPS[architecture]
    return settings


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(
            f"{path} must be the JSON configuration of a model, but cannot be read ({error}); give the "
            "folder of "
            "a whole model"
        ) from error
    if not isinstance(values, dict):
        raise ConversionError(f"{path} must hold settings by name, but holds {type(values).__name__}")
    return values

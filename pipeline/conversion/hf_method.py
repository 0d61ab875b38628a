"""The method of a model in a ``config.json``: PonderLM-2 where the flags of its published code say so."""

from collections.abc import Mapping
from typing import Any

from megatron_ext.ponder.config import Method, Mixture
from pipeline.config.errors import as_written
from pipeline.conversion.hf_keys import CLASSES, ConfigKeys

# J where the published PonderLM-2 code draws it (definitions 2.3).
_RANDOM_SWEEPS = {"gpt_neox": [2, 4], "llama": [2, 3]}


def method_settings(keys: ConfigKeys, architecture: str) -> dict[str, Any]:
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
    if classes not in (None, [CLASSES[architecture]]):
        keys.problems.append(
            f"architectures: must be [{CLASSES[architecture]}], but is {as_written(classes)}; another "
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


def _ponderlm2(keys: ConfigKeys, flags: Mapping[str, Any], architecture: str) -> dict[str, Any]:
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

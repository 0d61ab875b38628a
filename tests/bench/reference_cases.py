"""What `python -m tests.bench compare-reference` compares: methods of the published code, and sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.config.load import build_config
from pipeline.config.schema import RunConfig
from pipeline.conversion.hf_config import render_hf_config
from tests.bench.step import StepSizes

Part = Literal["train", "decode"]
Precision = Literal["fp32", "bf16"]
PARTS: tuple[Part, ...] = ("train", "decode")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
ARCHITECTURES: Mapping[Part, str] = {"train": "gpt_neox", "decode": "llama"}
MODEL_FOLDER = Path("src", "llamafactory", "model", "modeling")
# Keys of a config.json that are no arguments of a configuration class in all versions of transformers.
_NOT_ARGUMENTS = ("architectures", "model_type", "torch_dtype")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceCase:
    """A method, as this program and as the published code names it.

    Attributes:
        name: in tables and options.
        ponder: settings of this program.
        model_files: of the published code, by part; without one, transformers' own model is the other side.
        fields: of the published code's configuration.
    """

    name: str
    ponder: Mapping[str, Any]
    model_files: Mapping[Part, str] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_vanilla(self) -> bool:
        """Whether transformers itself has the model."""
        return not self.model_files

    @property
    def parts(self) -> tuple[Part, ...]:
        """Where the other side can run it: the published NeoX files cannot decode with a cache."""
        return PARTS if self.is_vanilla else tuple(part for part in PARTS if part in self.model_files)

    @property
    def training_rows(self) -> int:
        """Rows per token of a training step, from which the time left is estimated."""
        thoughts = self.ponder.get("num_latent_thoughts", 0)
        if "num_jacobi_iterations" not in self.ponder:
            return int(thoughts) + 1
        sweeps = self.ponder["num_jacobi_iterations"]
        return int(thoughts * (thoughts + 1) // 2 + (sweeps + 1) * (thoughts + 1))

    def reference_fields(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields that the published code reads, some of which depend on the model's sizes."""
        derived = {
            # Every how many layers there is a mixture, counted from the last: only of the last.
            "hidden_layer_num": model["num_hidden_layers"],
            "pause_token_id": model["vocab_size"] - 1,
        }
        return {name: derived.get(name, value) for name, value in self.fields.items()}


def _ponderlm2(num_latent_thoughts: int, num_jacobi_iterations: int) -> ReferenceCase:
    counts = {
        "num_latent_thoughts": num_latent_thoughts,
        "num_jacobi_iterations": num_jacobi_iterations,
    }
    return ReferenceCase(
        name=f"ponderlm2 K{num_latent_thoughts} J{num_jacobi_iterations}",
        ponder={"method": "ponderlm2"} | counts,
        model_files={"train": "modeling_gpt_neox.py", "decode": "modeling_llama.py"},
        fields=counts
        | {
            "recurrent_model": True,
            "random_jacobi_iterations": False,
            "scale_embeds": True,
            "interpolation": False,
        },
    )


_CASES = (
    ReferenceCase(name="vanilla", ponder={"method": "vanilla"}),
    _ponderlm2(1, 3),
    _ponderlm2(3, 3),
    ReferenceCase(
        name="ponderlm K3",
        # The published code of PonderLM-2 trains this baseline with plain embeddings.
        ponder={"method": "ponderlm", "num_latent_thoughts": 3, "scale_embeds": False},
        model_files={"train": "modeling_gpt_neox_addhidden.py"},
        fields={
            "recurrent_model": True,
            "num_latent_thoughts": 3,
            "output_hidden_states": True,
            "hidden_layer_num": 0,
        },
    ),
    ReferenceCase(
        name="loop K3",
        ponder={"method": "loop", "num_latent_thoughts": 3},
        model_files={"train": "modeling_gpt_neox_addhidden_weightshare.py"},
        fields={"recurrent_model": True, "num_latent_thoughts": 3},
    ),
    ReferenceCase(
        name="pause K3",
        ponder={"method": "pause", "num_latent_thoughts": 3},
        model_files={"train": "modeling_gpt_neox_addpausetoken.py"},
        fields={"num_latent_thoughts": 3, "scale_embeds": True, "pause_token_id": 0},
    ),
)
CASES: Mapping[str, ReferenceCase] = {case.name: case for case in _CASES}


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonSizes:
    """Sizes of the models, of a training step, and of what is decoded.

    Attributes:
        model: of the models and of a step.
        check_tokens: length of the rows on which losses are compared before anything is timed.
        prompt_tokens, new_tokens: of a decoded text.
        decode_batch_sizes: texts that are decoded together.
    """

    model: StepSizes = field(default_factory=StepSizes)
    check_tokens: int = 64
    prompt_tokens: int = 32
    new_tokens: int = 16
    decode_batch_sizes: tuple[int, ...] = (8, 1)

    def settings(self, case: ReferenceCase, precision: Precision, part: Part) -> dict[str, Any]:
        """Return the settings of a run of this program."""
        sizes = replace(self.model, architecture=ARCHITECTURES[part])
        settings = sizes.settings("vanilla", precision)
        ponder = dict(case.ponder)
        if ponder["method"] == "pause":
            ponder["pause_token_id"] = self.model.vocab_size - 1
        settings["ponder"] = ponder
        settings["optimizer"]["lr_decay_style"] = "constant"
        return settings


def reference_config(case: ReferenceCase, run: RunConfig) -> dict[str, Any]:
    """Return the arguments of the configuration class of transformers for the model of a run."""
    assert run.model.vocab_size is not None, "sizes state the vocabulary"
    model = render_hf_config(run.model, vocab_size=run.model.vocab_size, dtype="float32", token_ids={})
    arguments = {key: value for key, value in model.items() if key not in _NOT_ARGUMENTS}
    return arguments | case.reference_fields(model)


def task_of(
    case: ReferenceCase, precision: Precision, part: Part, sizes: ComparisonSizes, *, checkout: Path | None
) -> dict[str, Any]:
    """Return what a process of either side needs to build the model, as JSON."""
    settings = sizes.settings(case, precision, part)
    run = build_config(settings)
    optimizer = run.optimizer
    file = case.model_files.get(part)
    assert file is None or checkout is not None, "the published code is needed"
    return {
        "architecture": ARCHITECTURES[part],
        "precision": precision,
        "settings": settings,
        "config": reference_config(case, run),
        "model_file": None if file is None or checkout is None else str(checkout / MODEL_FOLDER / file),
        "optimizer": {
            "lr": optimizer.lr,
            "betas": [optimizer.adam_beta1, optimizer.adam_beta2],
            "eps": optimizer.adam_eps,
            "weight_decay": optimizer.weight_decay,
            "clip_grad": optimizer.clip_grad,
        },
    }


def model_files(cases: Sequence[ReferenceCase], parts: Sequence[Part], checkout: Path) -> list[Path]:
    """Return the files of a checkout that these cases need."""
    names = {case.model_files[part] for case in cases for part in parts if part in case.model_files}
    return [checkout / MODEL_FOLDER / name for name in sorted(names)]

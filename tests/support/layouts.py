"""Tiny models of every method, the layouts they are trained on, and the matrix of both.

A case is one model on one layout with one kind of recompute and one or several numbers of sweeps J.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_ext.ponder.config import Method
from megatron_ext.ponder.passes import draw_jacobi_iterations
from pipeline.config.load import build_config
from pipeline.config.schema import RunConfig
from tests.support.pairwise import pairs_of

# Padded to 56 rows on one tensor-parallel rank and to 64 on two.
VOCAB_SIZE = 50
SEQ_LENGTH, MICRO_BATCH_SIZE, NUM_MICRO_BATCHES = 12, 2, 4
LARGEST_J = 4
SEED = 0
# J of the steps of a case; the random ones are those of a run with the seed.
SWEEPS = {
    "1": (1,),
    "3": (3,),
    "random": tuple(draw_jacobi_iterations(SEED, step, 1, LARGEST_J) for step in range(2)),
}
RECOMPUTE = ("none", "full", "per_pass", "selective")
LLAMA = {"architecture": "llama", "num_query_groups": 2, "padding_token_id": 3}
NEOX = {"architecture": "gpt_neox"}
TIED = {"untie_embeddings_and_output_weights": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A parallel layout of a model of four layers."""

    tensor: int = 1
    context: int = 1
    pipeline: int = 1
    data: int = 1
    sequence_parallel: bool = False
    layers_per_stage: tuple[int, ...] | None = None

    @property
    def world_size(self) -> int:
        return self.tensor * self.context * self.pipeline * self.data


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A method on a backbone."""

    method: Method
    backbone: Mapping[str, Any]
    ponder: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sweeps(self) -> bool:
        return self.method.has_sweeps

    def config(self, layout: Layout, *, seed: int = 1, **sections: Mapping[str, Any]) -> RunConfig:
        """Return the settings of a run on a layout, with further settings by section."""
        ponder = {"method": self.method, "num_latent_thoughts": 0 if self.method is Method.VANILLA else 2}
        if self.sweeps:
            ponder["num_jacobi_iterations"] = LARGEST_J
        parallel = {name: getattr(layout, name) for name in layout.__dataclass_fields__}
        settings: dict[str, Any] = {
            "seed": seed,
            "model": _SIZES | self.backbone,
            "ponder": ponder | self.ponder,
            "parallel": parallel,
            "training": _TRAINING,
            "optimizer": {"lr": 1e-2},
            "data": {"path": "nowhere"},
        }
        for name, section in sections.items():
            settings[name] = {**settings.get(name, {}), **section}
        return build_config(settings)


_SIZES = {
    "num_layers": 4,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_attention_heads": 4,
    "vocab_size": VOCAB_SIZE,
    "make_vocab_size_divisible_by": 8,
}
_TRAINING = {
    "seq_length": SEQ_LENGTH,
    "micro_batch_size": MICRO_BATCH_SIZE,
    "global_batch_size": MICRO_BATCH_SIZE * NUM_MICRO_BATCHES,
    "train_iters": 4,
}

ONE_PROCESS = Layout()
LAYOUTS = {
    "TP2": Layout(tensor=2),
    "TP2+SP": Layout(tensor=2, sequence_parallel=True),
    "PP2": Layout(pipeline=2, layers_per_stage=(3, 1)),
    "PP4": Layout(pipeline=4),
    "TP2xPP2": Layout(tensor=2, pipeline=2),
    "TP2+SPxPP2": Layout(tensor=2, pipeline=2, sequence_parallel=True),
    "DP2": Layout(data=2),
    "DP2xPP2": Layout(data=2, pipeline=2, layers_per_stage=(1, 3)),
    "TP2xPP2xDP2": Layout(tensor=2, pipeline=2, data=2),
    "CP2": Layout(context=2),
    "TP2+SPxCP2": Layout(tensor=2, context=2, sequence_parallel=True),
    "CP2xPP2": Layout(context=2, pipeline=2),
    "CP2xDP2": Layout(context=2, data=2),
}


def _model(method: Method, *backbone: Mapping[str, Any], **ponder: Any) -> Model:
    merged = {name: value for part in backbone for name, value in part.items()}
    return Model(method=method, backbone=merged, ponder=ponder)


# Such that tokens halt at every step.
_HALTS = {"pruning_threshold": 0.3}
_HALTS_LATER = {"pruning_threshold": 0.1}
# Gates that are open are among those that the penalty pushes down.
_PUSHES_OPEN_GATES = {"bottom_k_fraction": 0.75}
# Else the gradient of a gate's bias, one number, is what the terms of the loss leave of each other.
_PUSHES_CLOSED_GATES = {"bottom_k_floor": False}
MODELS = {
    "vanilla, llama": _model(Method.VANILLA, LLAMA),
    "vanilla, neox tied": _model(Method.VANILLA, NEOX, TIED),
    "loop, llama tied": _model(Method.LOOP, LLAMA, TIED),
    "loop, neox": _model(Method.LOOP, NEOX, num_latent_thoughts=3),
    "pause, llama": _model(Method.PAUSE, LLAMA),
    "pause, neox tied": _model(Method.PAUSE, NEOX, TIED, num_latent_thoughts=1, pause_token_id=7),
    "ponderlm, llama": _model(Method.PONDERLM, LLAMA),
    "ponderlm, neox": _model(Method.PONDERLM, NEOX, softmax_temperature=0.5, multiply_embedding=True),
    "ponderlm, neox tied top-k": _model(
        Method.PONDERLM, NEOX, TIED, mixture="top_k", mixture_top_k=10, residual="from_embedding"
    ),
    "ponderlm, llama hidden": _model(Method.PONDERLM, LLAMA, mixture="hidden"),
    "ponderlm2, llama": _model(Method.PONDERLM2, LLAMA),
    "ponderlm2, neox softmax": _model(Method.PONDERLM2, NEOX, {"init": "ponderlm2"}, mixture="softmax"),
    "ponderlm2, llama tied top-k": _model(
        Method.PONDERLM2, LLAMA, TIED, mixture="top_k", mixture_top_k=10, num_latent_thoughts=1
    ),
    "adaponderlm, llama": _model(Method.ADAPONDERLM, LLAMA, **_HALTS, **_PUSHES_OPEN_GATES),
    "adaponderlm, neox": _model(
        Method.ADAPONDERLM, NEOX, num_latent_thoughts=3, **_HALTS_LATER, **_PUSHES_CLOSED_GATES
    ),
    "adaponderlm, neox tied top-k": _model(
        Method.ADAPONDERLM,
        NEOX,
        TIED,
        mixture="top_k",
        mixture_top_k=10,
        **_HALTS_LATER,
        **_PUSHES_CLOSED_GATES,
    ),
    "adaptive_latent_cot, llama": _model(Method.ADAPTIVE_LATENT_COT, LLAMA, pruning_threshold=0.35),
    "adaptive_latent_cot, neox tied": _model(
        Method.ADAPTIVE_LATENT_COT,
        NEOX,
        TIED,
        num_latent_thoughts=3,
        pruning_threshold=0.35,
        # With 2 the terms of the gradient of the router's bias, one number, cancel to a sixtieth of that of
        # its weights, and its rounding is compared instead of it.
        penalty_exponent=0.5,
        step_input_scale=0.5,
    ),
    "ponderlm3, llama": _model(Method.PONDERLM3, LLAMA, **_HALTS),
    "ponderlm3, neox tied": _model(
        Method.PONDERLM3, NEOX, TIED, penalty="bottom_k", num_latent_thoughts=3, **_HALTS
    ),
    "ponderlm3, neox softmax": _model(Method.PONDERLM3, NEOX, mixture="softmax", **_HALTS),
    "ponderlm3, llama top-k": _model(
        Method.PONDERLM3, LLAMA, mixture="top_k", mixture_top_k=10, penalty="bottom_k", **_HALTS
    ),
    "ponderlm3, llama authors": _model(Method.PONDERLM3, LLAMA, form="authors", **_HALTS),
    "ponderlm3, neox authors": _model(
        Method.PONDERLM3, NEOX, form="authors", penalty="delta_loss", num_latent_thoughts=3, **_HALTS
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A cell of the matrix, by name; `sweeps` is None for a method without Jacobi sweeps."""

    model: str
    layout: str
    recompute: str
    sweeps: str | None
    precision: str = "fp32"

    def __str__(self) -> str:
        sweeps = "" if self.sweeps is None else f", J {self.sweeps}"
        precision = "" if self.precision == "fp32" else f", {self.precision}"
        return f"{self.model}, {self.layout}, recompute {self.recompute}{sweeps}{precision}"

    @property
    def jacobi_iterations(self) -> tuple[int, ...]:
        """Return J of each step."""
        return (0,) if self.sweeps is None else SWEEPS[self.sweeps]

    def config(self) -> RunConfig:
        """Return the settings on the layout."""
        return MODELS[self.model].config(
            LAYOUTS[self.layout],
            parallel={"recompute": self.recompute},
            training={"precision": self.precision},
        )

    @property
    def shows(self) -> set[Hashable]:
        """Pairs of factors, and the model on every axis of the layout, with recompute or without."""
        model, layout = MODELS[self.model], LAYOUTS[self.layout]
        factors: dict[str, Hashable] = {
            "method": model.method,
            "layout": self.layout,
            "recompute": self.recompute,
            "architecture": model.backbone["architecture"],
            "is tied": "untie_embeddings_and_output_weights" in model.backbone,
        }
        factors |= {"J": self.sweeps} if model.sweeps else {}
        axes = [name for name in ("tensor", "context", "pipeline", "data") if getattr(layout, name) > 1]
        extras = [*axes, "sequence"] if layout.sequence_parallel else axes
        again = self.recompute != "none"
        return pairs_of(factors) | {(self.model, extra) for extra in (*extras, again)}


def matrix() -> list[Case]:
    """Return methods x layouts x recompute x J; the models of a method take turns."""
    cases = []
    for method in Method:
        models = [name for name, model in MODELS.items() if model.method is method]
        sweeps: tuple[str | None, ...] = tuple(SWEEPS) if method.has_sweeps else (None,)
        for number, layout in enumerate(LAYOUTS):
            for shift, recompute in enumerate(RECOMPUTE):
                for turn, kind in enumerate(sweeps):
                    model = models[(number + shift + turn) % len(models)]
                    cases.append(Case(model=model, layout=layout, recompute=recompute, sweeps=kind))
    return cases

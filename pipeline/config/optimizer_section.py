"""Settings of the optimizer and of its learning rate."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import BelowOne, Count, CountOrZero, NonNegative, Positive, Section

OptimizerName = Literal["adamw", "muon"]


class OptimizerConfig(Section):
    """The optimizer and its learning-rate schedule."""

    name: OptimizerName = Field(
        "adamw",
        description="adamw: for all weights; muon: Muon for the matrices of the layers, AdamW for "
        "embeddings, head, biases, normalizations, router and gates",
    )
    lr: Positive = Field(description="largest learning rate")
    min_lr: NonNegative = Field(0.0, description="learning rate at the end of the decay")
    lr_decay_style: Literal["cosine", "wsd", "constant", "linear"] = Field(
        "cosine",
        description="course of the learning rate after the warm-up; wsd: constant, then a decay over "
        "wsd_decay_iters",
    )
    lr_warmup_iters: CountOrZero = Field(
        0, description="iterations over which the learning rate rises linearly to lr"
    )
    lr_warmup_init: NonNegative = Field(
        0.0,
        description="learning rate at which the warm-up starts, such as the final one of the initial model",
    )
    lr_decay_iters: Count | None = Field(None, description="default: training.train_iters")
    wsd_decay_iters: Count | None = Field(None, description="length of the decay of lr_decay_style: wsd")
    wsd_decay_style: Literal["exponential", "linear", "cosine", "minus_sqrt"] = Field(
        "exponential", description="shape of the decay of lr_decay_style: wsd"
    )
    new_parameters_lr_mult: Positive | None = Field(
        None,
        description="learning rate of the router or gates as a multiple of lr; default: lr, in one parameter "
        "group with the backbone",
    )
    weight_decay: NonNegative = Field(
        0.1, description="decoupled from the gradient; not of biases and normalizations"
    )
    adam_beta1: BelowOne = Field(0.9, description="decay of the first moment per update")
    adam_beta2: BelowOne = Field(0.95, description="decay of the second moment per update")
    adam_eps: Positive = Field(1e-8, description="added to the root of the second moment")
    muon_lr: Positive | None = Field(
        None,
        description="largest learning rate of Muon, whose updates are scaled to the size of AdamW's; it "
        "decays in proportion to lr; default: lr",
    )
    muon_momentum: BelowOne = Field(
        0.95, description="decay of Muon's mean of gradients per update (Nesterov)"
    )
    muon_num_ns_steps: Annotated[int, Field(strict=True, ge=1, le=20)] = Field(
        5, description="Newton-Schulz iterations by which Muon orthogonalizes the update of a matrix"
    )
    clip_grad: NonNegative = Field(1.0, description="largest gradient norm; 0 turns clipping off")

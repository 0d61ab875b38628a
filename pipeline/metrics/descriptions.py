"""What each metric is, in a sentence with its unit; TensorBoard shows it at the curve."""

import re
from typing import Final

from pipeline.metrics import names

__all__ = ["DESCRIPTIONS", "description_of"]

DESCRIPTIONS: Final = {
    names.LM_LOSS: "Cross-entropy without the penalty, in nats per labelled token: mean over the interval.",
    names.LM_LOSS_VALIDATION: "Cross-entropy on held-out text, in nats per labelled token.",
    names.LM_LOSS_VALIDATION_PPL: "Perplexity on held-out text: the exponential of the loss, capped at e^20.",
    names.LEARNING_RATE: "Learning rate of the next step.",
    names.DECOUPLED_LEARNING_RATE: "Learning rate of the router or the gates, if they have one of their own.",
    names.MUON_LEARNING_RATE: "Learning rate of the matrices that Muon updates.",
    names.BATCH_SIZE: "Sequences per iteration, over all ranks.",
    names.LOSS_SCALE: "Factor of the loss in backward; 1 in fp32 and bf16.",
    names.WORLD_SIZE: "Number of ranks.",
    names.GRAD_NORM: "Norm of the gradient of the last step, before it is clipped.",
    names.NUM_ZEROS: "Zeros in the gradient of the last step.",
    names.PARAMS_NORM: "Norm of all weights.",
    names.ITERATION_TIME: "Seconds per iteration: mean over the interval.",
    names.THROUGHPUT: "TFLOP/s per device, by the operations of the method, without recomputation.",
    names.MEMORY: "The most memory that tensors of rank 0 have taken on its device, in bytes.",
    names.TOKENS_PER_SECOND: "Tokens of all ranks per second.",
    names.MFU: "Share of the device's dense peak, by the operations of the method (1 is the peak).",
    names.HFU: "Share of the device's dense peak, by all operations computed, recomputation included.",
    names.MEAN_STEPS: "Extra steps per token at the threshold tau. Starts at K, and falls with the penalty.",
    names.STEPS_HISTOGRAM: "Tokens by their number of extra steps. Healthy: several bars.",
    names.ROUTER_ENTROPY: "Entropy of the router, in nats. Near 0 it has saturated and hardly learns.",
    names.PENALTY: "The penalty on steps, before its weight.",
    names.PENALTY_WEIGHT: "Weight of the penalty in the loss, now.",
    names.JACOBI_ITERATIONS: "Jacobi sweeps J of the interval's steps: mean.",
    names.LATENT_THOUGHTS: "Steps K of the interval's steps: mean, where K is drawn or scheduled.",
    names.CONTRACTION: "Mean factor from one Jacobi residual to the next; near 1, sweeps do not help.",
    names.FLOPS_PER_TOKEN_TRAIN: "Floating-point operations per token in training, without recomputation.",
    names.FLOPS_PER_TOKEN_INFER: "Floating-point operations per token at inference, at the mean steps.",
    names.FLOPS_SAVED: "Share of the operations of all K steps that pruning saves at inference.",
    names.ACTIVE_FRACTION: "Share of the tokens that take at least this step.",
    names.HALT_FRACTION: "Share of the tokens that take exactly so many steps.",
    names.GATE: "Mean gate of this iteration, halted tokens included. Healthy: open for some, not for all.",
    names.CONTINUE_PROBABILITY: "Mean probability of continuing after this step, of the tokens that ran it.",
    names.THOUGHT_ROWS: "Share of the rows of thoughts that training ran; pruned ones were left out.",
    names.TAIL_MASS: "Mean weight of this step and the later ones. Settles apart from 0 and 1.",
    names.PRUNED_FRACTION: "Share of the tokens to which decoding does not give this step.",
    names.ACCURACY: "Mean probability of the labels, predicted from at most this step.",
    names.PENALISED_SHARE: "Share of the tokens that the penalty pushes out of this step.",
    names.NLL_BY_STEPS: "Loss of the tokens that take so many steps, in nats. Healthy: rises with the steps.",
    names.STEP_NLL: "Loss if every token read this step alone, in nats. Healthy: later steps predict better.",
    names.ONE_MORE_NLL: "Loss if every token took one step more than its router says, in nats.",
    names.JACOBI_RESIDUAL: "Relative change of the thoughts in this Jacobi sweep. Falls from sweep to sweep.",
    names.EVAL_PPL_VS_STEPS: "Held-out perplexity with at most so many steps.",
    names.EVAL_PPL_VS_TAU: "Held-out perplexity, pruned hard at this threshold.",
    names.EVAL_STEPS_VS_TAU: "Extra steps per held-out token, pruned hard at this threshold.",
    names.SOURCE_TOKENS: "Tokens of this source of the blend that the run has seen.",
}
"""By tag, or by the part of a tag before its number."""

_NUMBER = re.compile(r"/(step|iteration|sweep|tau)_[^/ ]+$")


def description_of(tag: str) -> str:
    """Return the description of a tag, whichever number, axis or split it has; empty if unknown."""
    on_iterations = tag.removesuffix(names.versus_samples(""))
    on_training = on_iterations.removesuffix(names.on_validation(""))
    if on_iterations in DESCRIPTIONS:
        text = DESCRIPTIONS[on_iterations]
    else:
        is_of_source = on_training.startswith(f"{names.SOURCE_TOKENS}/")
        family = names.SOURCE_TOKENS if is_of_source else _NUMBER.sub("", on_training)
        text = DESCRIPTIONS.get(family, "")
        text = text if on_training == on_iterations else f"On held-out text. {text}"
    return text if on_iterations == tag else f"Over consumed samples. {text}"

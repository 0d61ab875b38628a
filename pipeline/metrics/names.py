"""The names of all metrics.

Metrics that Megatron-LM has use its tags exactly; those about pondering are under ``ponder/``.
"""

from typing import Final

# In the folder of a run.
TENSORBOARD_FOLDER: Final = "tensorboard"
PROFILE_FOLDER: Final = "profile"

# Megatron-LM's TensorBoard tags.
LM_LOSS: Final = "lm loss"
LM_LOSS_VALIDATION: Final = "lm loss validation"
LM_LOSS_VALIDATION_PPL: Final = "lm loss validation ppl"
LEARNING_RATE: Final = "learning-rate"
# Of the router or the gates, if they have a learning rate of their own.
DECOUPLED_LEARNING_RATE: Final = "decoupled-learning-rate"
# Of the matrices of the layers, if Muon updates them; no tag of Megatron-LM.
MUON_LEARNING_RATE: Final = "muon-learning-rate"
BATCH_SIZE: Final = "batch-size"
LOSS_SCALE: Final = "loss-scale"
WORLD_SIZE: Final = "world-size"
GRAD_NORM: Final = "grad-norm"
NUM_ZEROS: Final = "num-zeros"
PARAMS_NORM: Final = "params-norm"
ITERATION_TIME: Final = "iteration-time"
THROUGHPUT: Final = "throughput"
# The most memory allocated on a device, in bytes; absent on CPUs.
MEMORY: Final = "mem-max-allocated-bytes"

# Tags of Megatron Bridge, for metrics that Megatron-LM does not have.
TOKENS_PER_SECOND: Final = "throughput/tokens_per_sec"
MFU: Final = "throughput/device/mfu"
HFU: Final = "throughput/device/hfu"

# Identifies the tokens of the logged iteration's global batch on any layout; text, so not in TensorBoard.
DATA_HASH: Final = "data-hash"

# Of a blend, with the name of the source behind it.
SOURCE_TOKENS: Final = "data/tokens"

MEAN_STEPS: Final = "ponder/mean-steps"
STEPS_HISTOGRAM: Final = "ponder/steps-histogram"
ROUTER_ENTROPY: Final = "ponder/router-entropy"
PENALTY: Final = "ponder/penalty"
PENALTY_WEIGHT: Final = "ponder/penalty-weight"
JACOBI_ITERATIONS: Final = "ponder/jacobi-iterations"
# Mean K of the training steps, where it is drawn or scheduled.
LATENT_THOUGHTS: Final = "ponder/latent-thoughts"
CONTRACTION: Final = "ponder/contraction"
# Share of the rows of thoughts that ran in training, where those of pruned slots are left out.
THOUGHT_ROWS: Final = "ponder/thought-rows"
FLOPS_PER_TOKEN_TRAIN: Final = "ponder/flops-per-token-train"
FLOPS_PER_TOKEN_INFER: Final = "ponder/flops-per-token-infer"
FLOPS_SAVED: Final = "ponder/flops-saved"

ACTIVE_FRACTION: Final = "ponder/active-fraction"
HALT_FRACTION: Final = "ponder/halt-fraction"
GATE: Final = "ponder/gate"
CONTINUE_PROBABILITY: Final = "ponder/continue-probability"
TAIL_MASS: Final = "ponder/tail-mass"
PRUNED_FRACTION: Final = "ponder/pruned-fraction"
ACCURACY: Final = "ponder/accuracy"
PENALISED_SHARE: Final = "ponder/penalised-share"
NLL_BY_STEPS: Final = "ponder/nll-by-steps"
# Only on the held-out split: the loss if all tokens read step k alone, and if each took one step more.
STEP_NLL: Final = "ponder/step-nll"
ONE_MORE_NLL: Final = "ponder/one-more-step-nll"
JACOBI_RESIDUAL: Final = "ponder/jacobi-residual"

# Only on the held-out split: perplexity for a maximum number of steps and for a threshold, and mean steps for
# a threshold.
EVAL_PPL_VS_STEPS: Final = "ponder/eval-ppl-vs-steps"
EVAL_PPL_VS_TAU: Final = "ponder/eval-ppl-vs-tau"
EVAL_STEPS_VS_TAU: Final = "ponder/eval-steps-vs-tau"
# All points of both, in metrics.jsonl.
EVAL_SWEEP: Final = "ponder/eval-sweep"


def per_tau(family: str, tau: float) -> str:
    """Name the curve of one threshold, such as ``ponder/eval-ppl-vs-tau/tau_0.01``."""
    return f"{family}/tau_{tau:g}"


def tokens_of_source(name: str) -> str:
    """Name the curve of the tokens seen of one source of a blend, such as ``data/tokens/books``."""
    return f"{SOURCE_TOKENS}/{name}"


def per_step(family: str, step: int) -> str:
    """Name the curve of one ponder step (0..K), such as ``ponder/halt-fraction/step_2``."""
    return f"{family}/step_{step}"


def per_iteration(family: str, iteration: int) -> str:
    """Name the curve of one ponder iteration (0..K-1), such as ``ponder/gate/iteration_0``."""
    return f"{family}/iteration_{iteration}"


def per_sweep(family: str, sweep: int) -> str:
    """Name the curve of one Jacobi sweep (1..J), such as ``ponder/jacobi-residual/sweep_1``."""
    return f"{family}/sweep_{sweep}"


def versus_samples(tag: str) -> str:
    """Name the twin of a curve whose horizontal axis is consumed samples instead of iterations."""
    return f"{tag} vs samples"


def on_validation(tag: str) -> str:
    """Name the same statistic measured on the held-out split."""
    return f"{tag} validation"

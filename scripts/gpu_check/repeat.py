"""bf16 beside fp32, and whether two equal runs give the same bits."""

import os
from itertools import pairwise

from megatron_ext.parallel.groups import ParallelGroups
from pipeline.config.schema import RunConfig
from pipeline.ranks.gpu_variables import gpu_variables
from pipeline.run.determinism import compute_deterministically
from scripts.gpu_check.one_rank import one_rank, random_batches, recipe, trainer
from scripts.gpu_check.place import Findings, Place

# About 20M parameters, of which no layer is large; random tokens are learned by heart.
_SIZES = (
    *("model.num_layers=4", "model.hidden_size=256", "model.ffn_hidden_size=688", "model.vocab_size=8192"),
    *("model.num_attention_heads=4", "training.seq_length=256", "optimizer.lr_warmup_iters=0"),
    *("training.micro_batch_size=8", "training.global_batch_size=8"),
)
# Largest distance of a bf16 loss from the fp32 one over all steps, nats.
PRECISION_TOLERANCE = 0.1


def run(place: Place) -> Findings:
    """Train the same steps in several ways; those that ask for it must repeat to the bit."""
    # Read when the first product runs.
    os.environ |= gpu_variables(os.environ, dump_folder=place.folder, is_deterministic=True)
    found = Findings()
    num_steps = place.choose(30, 3)
    with one_rank() as groups:
        usual = [_losses(_config(place, "bf16"), groups, num_steps) for _ in range(2)]
        wide = _losses(_config(place, "fp32"), groups, num_steps)
        compute_deterministically()
        asked = [
            _losses(_config(place, "bf16", "training.deterministic=true"), groups, num_steps)
            for _ in range(2)
        ]
    distance = max(abs(one - other) for one, other in zip(usual[0], wide, strict=True))
    found.figures = {
        "bf16": usual[0],
        "fp32": wide,
        "distance_of_bf16": distance,
        "usual_repeats": usual[0] == usual[1],
        "deterministic_repeats": asked[0] == asked[1],
    }
    found.expect(distance < PRECISION_TOLERANCE, f"bf16 is {distance:.3g} nats from fp32")
    found.expect(asked[0] == asked[1], f"training.deterministic does not repeat: {asked}")
    found.expect(usual[0][-1] < usual[0][0], f"nothing is learned: {list(pairwise(usual[0]))[:2]}")
    found.summary = (
        f"bf16 within {distance:.2g} nats of fp32; two runs are {_same(usual[0] == usual[1])}, "
        f"with training.deterministic {_same(asked[0] == asked[1])}"
    )
    return found


def _config(place: Place, precision: str, *overrides: str) -> RunConfig:
    sizes = _SIZES if not place.is_tiny else _SIZES[6:]
    # Compiling for this size alone would take longer than the runs.
    fixed = ("optimizer.lr=3e-3", "training.fused=never")
    settings = (f"training.precision={precision}", *fixed, *overrides)
    return recipe(place, "llama_410m_ponderlm3", *sizes, *settings)


def _losses(config: RunConfig, groups: ParallelGroups, num_steps: int) -> list[float]:
    with trainer(config, groups) as run:
        batches = random_batches(config)
        return [run.step(batches) for _ in range(num_steps)]


def _same(is_same: bool) -> str:
    return "equal to the bit" if is_same else "not equal"

"""A run that continues a vanilla model computes what that model does before the first step."""

from pathlib import Path

import pytest
import torch

from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from megatron_ext.ponder.config import Method
from pipeline.checkpoint.saver import save_checkpoint
from pipeline.checkpoint.state import TrainState
from pipeline.config.load import dump_config
from pipeline.run.initial_weights import load_initial_weights
from pipeline.step.build import TrainingParts, build_training
from pipeline.step.evaluate import evaluate
from tests.support.layout_steps import own_batches
from tests.support.layouts import LARGEST_J, LLAMA, NEOX, VOCAB_SIZE, Layout, Model
from tests.support.ranks import run_alone

pytestmark = pytest.mark.multiprocess

# Of float32, summed over some hundred tokens.
ROUNDING = 1e-6


def _loss(module: PonderModel, groups: ParallelGroups, *, pondering_share: float = 1.0) -> float:
    """Evaluate as a run does."""
    found = evaluate(
        module,
        [own_batches(groups)],
        num_jacobi_iterations=LARGEST_J,
        pondering_share=pondering_share,
        groups=groups,
    )
    assert found is not None
    return found.loss


def _save_vanilla(folder: Path, architecture: str, groups: ParallelGroups) -> float:
    config = _model(Method.VANILLA, architecture).config(Layout(), seed=1)
    parts = build_training(config, VOCAB_SIZE, groups)
    with torch.no_grad():
        for weight in parts.module.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    config_file = folder / "vanilla.yaml"
    dump_config(config, config_file)
    save_checkpoint(
        folder / "vanilla",
        TrainState(iteration=7, consumed_samples=0),
        module=parts.module,
        optimizer=parts.optimizer,
        scheduler=parts.scheduler,
        groups=groups,
        config_file=config_file,
    )
    return _loss(parts.module, groups)


def _model(method: Method, architecture: str) -> Model:
    ponder = {} if method is Method.VANILLA else {"scale_embeds": False}
    return Model(method=method, backbone={"llama": LLAMA, "gpt_neox": NEOX}[architecture], ponder=ponder)


def _continued(folder: Path, method: Method, architecture: str, groups: ParallelGroups) -> TrainingParts:
    start = {"path": str(folder / "vanilla"), "method": "vanilla"}
    config = _model(method, architecture).config(Layout(), seed=2, init_from=start)
    parts = build_training(config, VOCAB_SIZE, groups)
    load_initial_weights(config, parts, groups, vocab_size=VOCAB_SIZE)
    return parts


def _losses(folder: Path, architecture: str) -> dict[str, float]:
    groups = initialize_groups()
    try:
        losses = {"vanilla": _save_vanilla(folder, architecture, groups)}
        continued = _continued(folder, Method.PONDERLM3, architecture, groups)
        losses["as it starts"] = _loss(continued.module, groups)
        losses["blended with slots"] = _loss(continued.module, groups, pondering_share=0.0)
        router = continued.module.ponder.router[2]
        router.bias.data.copy_(torch.tensor([1e4, 0.0, 0.0]))
        losses["all on step 0"] = _loss(continued.module, groups)
        continued = _continued(folder, Method.ADAPONDERLM, architecture, groups)
        losses["blended with iterations"] = _loss(continued.module, groups, pondering_share=0.0)
        for gate in continued.module.ponder.gates:
            gate[2].bias.data.fill_(-1e4)
        losses["all gates closed"] = _loss(continued.module, groups)
        return losses
    finally:
        destroy_groups()


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_with_all_weight_on_step_0_the_loss_is_that_of_the_vanilla_model(
    tmp_path: Path, architecture: str
) -> None:
    losses = run_alone(_losses, tmp_path, architecture)

    vanilla = losses["vanilla"]
    assert losses["all on step 0"] == pytest.approx(vanilla, rel=ROUNDING)
    assert losses["all gates closed"] == pytest.approx(vanilla, rel=ROUNDING)
    assert losses["blended with iterations"] == pytest.approx(vanilla, rel=ROUNDING)
    # The keys of thoughts have e^-6 of their weight.
    shock = abs(losses["as it starts"] - vanilla)
    assert abs(losses["blended with slots"] - vanilla) < 0.1 * shock
    # The router does not start there: it puts 0.9 on the last step.
    assert losses["as it starts"] != pytest.approx(vanilla, rel=1e-3)

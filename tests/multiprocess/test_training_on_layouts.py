"""A few training steps on a layout change the weights as in one process.

J is random in every step, data-parallel ranks share the optimizer's state, and every gradient is clipped.
"""

import pytest

from tests.support.layout_trainings import (
    Training,
    assert_as_in_one_process,
    compare_with_trained,
    write_trained,
)
from tests.support.ranks import SharedRanks, run_alone
from tests.support.side_by_side import SideBySide

pytestmark = pytest.mark.multiprocess

BLENDED = (("blended_start_iterations", 3),)
HELD = (*BLENDED, ("held_decisions_iterations", 2))
DRAWN = (("random_latent_thoughts", (0, 2)),)
LAST_STEP = (("reading", "last_step"), ("step_loss_weight", 0.5), ("entropy_floor", 0.9))
DETACHED = (("reading", "detached_mixture"), ("step_loss_weight", 0.5))
GROWN = (("thoughts_schedule", ((0, 0), (1, 1), (3, 2))),)
TRAININGS = [
    Training(model="ponderlm3, llama", layout="PP2"),
    Training(model="ponderlm3, neox tied", layout="PP2", recompute="full"),
    Training(model="ponderlm2, llama", layout="PP2", recompute="per_pass"),
    Training(model="ponderlm3, neox softmax", layout="DP2xPP2"),
    Training(model="ponderlm3, llama", layout="DP2xPP2", recompute="full"),
    Training(model="ponderlm2, llama tied top-k", layout="DP2xPP2", recompute="per_pass"),
    Training(model="adaponderlm, neox", layout="DP2xPP2", recompute="full"),
    Training(model="ponderlm3, llama", layout="DP2xPP2", recompute="selective", freeze_backbone_tokens=150),
    Training(model="adaponderlm, llama", layout="PP4"),
    Training(model="ponderlm, llama", layout="TP2+SPxPP2", recompute="full"),
    Training(model="pause, neox tied", layout="TP2+SP"),
    Training(model="loop, neox", layout="DP2"),
    Training(model="vanilla, neox tied", layout="TP2xPP2xDP2"),
    Training(model="ponderlm3, llama top-k", layout="TP2xPP2xDP2", recompute="full"),
    Training(model="ponderlm3, llama", layout="TP2+SPxPP2", recompute="per_pass", ponder=HELD),
    Training(model="ponderlm3, neox softmax", layout="DP2xPP2", ponder=HELD + DRAWN),
    Training(model="ponderlm2, llama", layout="TP2+SPxPP2", ponder=BLENDED),
    Training(model="ponderlm2, llama tied top-k", layout="PP2", recompute="full", ponder=BLENDED),
    Training(model="adaponderlm, neox", layout="TP2+SP", ponder=HELD),
    Training(model="adaponderlm, llama", layout="PP2", ponder=(*HELD, *GROWN)),
    Training(model="loop, neox", layout="PP2", recompute="per_pass", ponder=BLENDED),
    Training(model="ponderlm, llama", layout="DP2xPP2", ponder=BLENDED + DRAWN),
    Training(model="pause, llama", layout="TP2+SP", ponder=BLENDED + GROWN),
    Training(model="ponderlm3, llama", layout="PP2", ponder=GROWN),
    Training(
        model="adaptive_latent_cot, llama", layout="DP2xPP2", recompute="selective", ponder=HELD + DRAWN
    ),
    Training(model="adaptive_latent_cot, neox tied", layout="TP2+SP", recompute="full", ponder=HELD),
    Training(model="ponderlm3, llama", layout="TP2+SPxPP2", recompute="full", ponder=LAST_STEP),
    Training(model="ponderlm3, neox softmax", layout="DP2xPP2", ponder=LAST_STEP + DRAWN),
    Training(model="ponderlm3, neox tied", layout="TP2+SP", ponder=DETACHED),
    Training(model="ponderlm3, llama", layout="CP2xDP2", ponder=LAST_STEP + DRAWN),
    Training(model="adaptive_latent_cot, llama", layout="CP2xPP2", ponder=HELD),
    Training(model="adaponderlm, neox", layout="TP2+SPxCP2", recompute="full", ponder=HELD),
]


@pytest.fixture(scope="module")
def side_by_side(ranks: SharedRanks, tmp_path_factory: pytest.TempPathFactory) -> SideBySide[Training]:
    file = tmp_path_factory.mktemp("trained") / "weights.pt"
    run_alone(write_trained, TRAININGS, file)
    return SideBySide(TRAININGS, compare_with_trained, file, ranks)


@pytest.mark.parametrize("training", TRAININGS, ids=str)
def test_training_on_a_layout_equals_training_in_one_process(
    training: Training, side_by_side: SideBySide[Training]
) -> None:
    assert_as_in_one_process(training, side_by_side)

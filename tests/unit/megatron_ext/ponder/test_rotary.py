import math

import pytest
import torch

from megatron_ext.ponder.rotary import rotary_angles


def angles(position_ids: list[list[int]], num_slots: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return rotary_angles(
        torch.tensor(position_ids), num_slots=num_slots, rotary_size=4, base=100, dtype=dtype
    )


def test_angles_by_hand_in_half_split_pairing() -> None:
    # Frequencies 1 and 100 ** -0.5, each once per half.
    assert angles([[0, 3]], 1)[:, 0, 0].tolist() == [[0, 0, 0, 0], pytest.approx([3, 0.3, 3, 0.3])]


def test_all_slots_of_a_token_share_its_position() -> None:
    position_ids = [[0, 1, 2], [5, 0, 1]]
    rows, tokens = angles(position_ids, 3), angles(position_ids, 1)

    assert rows.shape == (9, 2, 1, 4)
    for row in range(9):
        assert torch.equal(rows[row], tokens[row // 3])
    assert not torch.equal(rows[0], rows[3])


def test_sequences_have_their_own_positions() -> None:
    both = angles([[0, 1], [7, 0]], 2)

    torch.testing.assert_close(both[:, 0], angles([[0, 1]], 2)[:, 0])
    torch.testing.assert_close(both[:, 1], angles([[7, 0]], 2)[:, 0])


def test_far_positions_keep_their_angle() -> None:
    far = angles([[100_000]], 1, torch.float32)

    assert far.dtype == torch.float32
    assert math.cos(far[0, 0, 0, 0].item()) == pytest.approx(math.cos(100_000), abs=1e-6)

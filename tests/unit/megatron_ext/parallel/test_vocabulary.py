"""The most likely piece of a vocabulary, on one rank; layouts are compared by the golden vectors."""

import torch

from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.parallel.tensor import TensorAxis
from megatron_ext.parallel.vocabulary import IGNORED_LABEL, label_is_first


def test_a_label_is_first_where_no_piece_is_likelier_and_none_before_it_is_as_likely(
    groups: ParallelGroups,
) -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [3.0, 1.0, 3.0], [-1.0, -2.0, float("-inf")]]).unsqueeze(1)
    axis = TensorAxis(groups.tp, False)

    found = [
        label_is_first(logits, torch.full((3, 1), label), axis).flatten().tolist()
        for label in (0, 1, 2, IGNORED_LABEL)
    ]

    assert found == [
        [False, True, True],
        [True, False, False],
        [False, False, False],
        [False, False, False],
    ]

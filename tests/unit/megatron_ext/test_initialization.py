import pytest
import torch
from torch import Tensor

from megatron_ext.initialization import seeded_initialization


def draw(seed: int, name: str) -> Tensor:
    with seeded_initialization(seed, name):
        return torch.rand(4)


def test_a_draw_depends_on_seed_and_name_alone() -> None:
    first = draw(1, "layer 1")
    torch.rand(7)

    assert torch.equal(draw(1, "layer 1"), first)
    assert not torch.equal(draw(2, "layer 1"), first)
    assert not torch.equal(draw(1, "layer 2"), first)


def test_seed_and_name_do_not_run_into_each_other() -> None:
    assert not torch.equal(draw(1, "1:head"), draw(11, "head"))


def test_the_generator_outside_goes_on_as_if_nothing_had_been_drawn() -> None:
    torch.manual_seed(5)
    expected = torch.rand(6)
    torch.manual_seed(5)

    before = torch.rand(3)
    draw(1, "head")
    after = torch.rand(3)

    assert torch.equal(torch.cat([before, after]), expected)


def test_it_goes_on_even_after_a_failure() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    with pytest.raises(RuntimeError), seeded_initialization(1, "head"):
        torch.rand(1).reshape(2)

    assert torch.equal(torch.rand(3), expected)

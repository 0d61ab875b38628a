import torch

from tests.bench.live_memory import LiveMemory


def test_a_storage_counts_once_from_creation_until_it_is_freed() -> None:
    with LiveMemory() as memory:
        values = torch.zeros(100)
        view = values.view(10, 10)[2:]
        assert memory.live_bytes == 400
        del values
        assert memory.live_bytes == 400
        del view
        assert memory.live_bytes == 0
        assert memory.peak_bytes == 400


def test_in_place_operations_create_no_storage() -> None:
    with LiveMemory() as memory:
        values = torch.zeros(100)
        values.add_(1).mul_(2)
        torch.exp(values, out=values)

        assert memory.peak_bytes == 400


def test_tensors_saved_for_backward_are_counted() -> None:
    with LiveMemory() as memory:
        weight = torch.zeros(100, requires_grad=True)
        result = weight.exp().exp()
        # The inner exponential is kept for backward.
        assert memory.live_bytes == 1200
        memory.restart()
        result.sum().backward()
        assert memory.peak_bytes > 1200
        del result
        assert memory.live_bytes == 800

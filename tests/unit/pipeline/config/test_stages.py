import pytest

from pipeline.config.stages import even_stages


@pytest.mark.parametrize(
    ("num_layers", "num_stages", "stages"),
    [(6, 1, (6,)), (6, 2, (3, 3)), (3, 2, (2, 1)), (8, 3, (3, 3, 2)), (4, 4, (1, 1, 1, 1))],
)
def test_the_first_stages_take_what_is_left_over(
    num_layers: int, num_stages: int, stages: tuple[int, ...]
) -> None:
    assert even_stages(num_layers, num_stages) == stages

import pytest

from megatron_ext.ponder.config import Method
from pipeline.config.errors import as_written


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (None, "null"),
        (3, "3"),
        (0.1, "0.1"),
        ("a b", "'a b'"),
        (Method.LOOP, "loop"),
        ((0, 60), "[0, 60]"),
        ([(0, 1), (5, None)], "[[0, 1], [5, null]]"),
    ],
)
def test_values_are_written_as_in_yaml(value: object, text: str) -> None:
    assert as_written(value) == text

import pytest

from pipeline.shared.units import metric, render_bytes, render_flops


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1234, "1.23 k"),
        (9_996, "10.0 k"),
        (51_200, "51.2 k"),
        (999_900, "1.00 M"),
        (2.5e6, "2.50 M"),
        (7.13e11, "713 G"),
        (2e18, "2,000 P"),
    ],
)
def test_numbers_are_written_with_three_digits_and_a_prefix(value: float, text: str) -> None:
    assert metric(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(12, "12 FLOPs"), (6.9e6, "6.90 MFLOPs"), (3e21, "3,000,000 PFLOPs")]
)
def test_operations_have_their_unit(value: float, text: str) -> None:
    assert render_flops(value) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 bytes"),
        (1000, "1,000 bytes"),
        (1536, "1.50 KiB"),
        (2**20 - 1, "1.00 MiB"),
        (5.25 * 2**30, "5.25 GiB"),
        (3 * 2**50, "3,072 TiB"),
    ],
)
def test_sizes_are_binary(num_bytes: float, text: str) -> None:
    assert render_bytes(num_bytes) == text

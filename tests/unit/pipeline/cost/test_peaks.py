import pytest

from pipeline.cost.peaks import dense_peak


@pytest.mark.parametrize(
    ("name", "bfloat16", "float32"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4, 66.9),
        ("NVIDIA H100 PCIe", 756.4, 51.2),
        ("NVIDIA H200", 989.4, 66.9),
        ("NVIDIA GH200 480GB", 989.4, 66.9),
        ("NVIDIA H200 NVL", 835.5, 60.0),
        ("NVIDIA A100-SXM4-80GB", 311.9, 19.5),
        ("NVIDIA A100-PCIE-40GB", 311.9, 19.5),
        ("NVIDIA A10", 125.0, 31.2),
        ("NVIDIA B200", 2250.0, 80.0),
        ("NVIDIA L40S", 362.1, 91.6),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6),
    ],
)
def test_the_peak_is_the_dense_one_of_the_board(name: str, bfloat16: float, float32: float) -> None:
    peak = dense_peak(name)
    assert peak is not None
    assert (peak.at("bf16"), peak.at("fp32")) == (bfloat16 * 1e12, float32 * 1e12)


@pytest.mark.parametrize(
    "name",
    ["CPU (2 threads per rank)", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA A10G", "AMD Instinct MI300X"],
)
def test_an_unknown_device_has_none(name: str) -> None:
    assert dense_peak(name) is None

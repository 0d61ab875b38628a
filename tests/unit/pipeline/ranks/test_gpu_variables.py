import os
from pathlib import Path

import pytest

from megatron_ext import device
from pipeline.ranks import gpu_variables as module
from pipeline.ranks.gpu_variables import DEVICE_VARIABLE, gpu_variables, num_gpus, set_gpu_variables

FOLDER = Path("runs/a/stacks")


def test_every_run_gets_the_allocator_and_the_flight_recorder() -> None:
    assert gpu_variables({}, dump_folder=FOLDER) == {
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_FR_DUMP_TEMP_FILE": "runs/a/stacks/nccl_",
    }


def test_tensor_parallel_and_deterministic_runs_get_more() -> None:
    found = gpu_variables({}, dump_folder=FOLDER, tensor=2, is_deterministic=True)

    assert found["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert found["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.parametrize(
    ("given", "left_out"),
    [
        ({"PYTORCH_ALLOC_CONF": "backend:native"}, "PYTORCH_ALLOC_CONF"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, "PYTORCH_ALLOC_CONF"),
        ({"TORCH_NCCL_TRACE_BUFFER_SIZE": "0"}, "TORCH_FR_BUFFER_SIZE"),
        ({"CUDA_DEVICE_MAX_CONNECTIONS": "8"}, "CUDA_DEVICE_MAX_CONNECTIONS"),
        ({"CUBLAS_WORKSPACE_CONFIG": ":16:8"}, "CUBLAS_WORKSPACE_CONFIG"),
    ],
)
def test_what_is_given_stays(given: dict[str, str], left_out: str) -> None:
    wanted = gpu_variables({}, dump_folder=FOLDER, tensor=2, is_deterministic=True)
    found = gpu_variables(given, dump_folder=FOLDER, tensor=2, is_deterministic=True)

    assert set(wanted) - set(found) == {left_out}


@pytest.mark.parametrize("has_driver", [False, True])
def test_they_are_set_where_there_is_a_driver(has_driver: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in gpu_variables({}, dump_folder=FOLDER):
        # Restored after the test, whatever the test sets.
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(module, "has_nvidia_driver", lambda: has_driver)
    set_gpu_variables(dump_folder=FOLDER, tensor=1, is_deterministic=False)

    assert bool(os.environ["PYTORCH_ALLOC_CONF"]) == has_driver


@pytest.mark.skipif(module.has_nvidia_driver(), reason="about machines without a driver")
def test_a_machine_without_a_driver_has_no_gpus() -> None:
    assert num_gpus() == 0


def test_both_modules_mean_the_same_variable() -> None:
    assert DEVICE_VARIABLE == device.DEVICE_VARIABLE

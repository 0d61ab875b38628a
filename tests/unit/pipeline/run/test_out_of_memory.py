"""What a run says when its memory runs out."""

from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_ext.parallel.groups import ParallelGroups
from pipeline.config.load import build_config
from pipeline.config.schema import RunConfig
from pipeline.ranks.final_error import FINAL_ERROR_VARIABLE, read_final_error
from pipeline.run.out_of_memory import answering_out_of_memory, is_out_of_memory, memory_file
from pipeline.shared.errors import OutOfMemoryError
from pipeline.shared.exit_codes import FINAL_CODES
from tests.support.one_rank import groups
from tests.unit.pipeline.config.settings import changed_settings

__all__ = ["groups"]

# No machine has so many bytes.
TOO_MANY = 2**46
SEQ_LENGTH = 64


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    folder = tmp_path / "data" / "train"
    folder.mkdir(parents=True)
    np.zeros(8 * (SEQ_LENGTH + 1), dtype=np.uint16).tofile(folder / "part.bin")
    return build_config(
        changed_settings(
            output_dir=str(tmp_path / "run"),
            model__vocab_size=128,
            data={"path": str(folder.parent), "format": "rows", "eod_id": 0},
        )
    )


def test_lack_of_memory_is_answered_with_the_plan(
    config: RunConfig, groups: ParallelGroups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "final"
    monkeypatch.setenv(FINAL_ERROR_VARIABLE, str(final))
    with pytest.raises(OutOfMemoryError) as caught, answering_out_of_memory(config, groups):
        torch.empty(TOO_MANY, dtype=torch.uint8)

    answer = str(caught.value)
    assert caught.value.exit_code in FINAL_CODES
    noted = read_final_error(final)
    assert noted is not None
    assert noted.exit_code == caught.value.exit_code
    assert str(TOO_MANY) in noted.reason
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert str(TOO_MANY) in answer
    assert "weights" in answer
    assert "parallel.recompute=full" in answer
    # The allocator of a CPU has nothing to show.
    assert not memory_file(config, 0).exists()


def test_without_data_the_answer_names_the_command_that_plans(
    config: RunConfig, groups: ParallelGroups, tmp_path: Path
) -> None:
    without = config.model_copy(update={"data": config.data.model_copy(update={"path": tmp_path / "none"})})
    with pytest.raises(OutOfMemoryError, match="megaponder plan"), answering_out_of_memory(without, groups):
        torch.empty(TOO_MANY, dtype=torch.uint8)


def test_other_errors_pass(config: RunConfig, groups: ParallelGroups) -> None:
    with pytest.raises(RuntimeError, match="shape"), answering_out_of_memory(config, groups):
        torch.zeros(3).reshape(2)


def test_devices_have_a_class_of_their_own() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(MemoryError())

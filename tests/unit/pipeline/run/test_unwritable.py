import errno
import os
from pathlib import Path

import pytest

from pipeline.config.load import load_config
from pipeline.config.schema import RunConfig
from pipeline.run.unwritable import naming_unwritable_outputs
from pipeline.shared.errors import DiskFullError, UnwritableOutputError
from pipeline.shared.exit_codes import ExitCode

RECIPE = Path(__file__).parents[4] / "pipeline" / "recipes" / "tiny_vanilla.yaml"


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return load_config(RECIPE, ["output_dir=/runs/x", "checkpoint.directory=/checkpoints/x"])


def failing(number: int, file: str | None) -> OSError:
    arguments = (number, os.strerror(number))
    return OSError(*arguments) if file is None else OSError(*arguments, file)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("file", [None, "/runs/x/metrics.jsonl", "/elsewhere"])
def test_a_full_disk_is_named_and_not_started_again(config: RunConfig, number: int, file: str | None) -> None:
    with pytest.raises(DiskFullError) as caught, naming_unwritable_outputs(config):
        raise failing(number, file)
    assert caught.value.exit_code == ExitCode.DO_NOT_REQUEUE
    assert (file or "/runs/x") in str(caught.value)


@pytest.mark.parametrize(
    "number", [errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG]
)
@pytest.mark.parametrize(
    ("file", "setting"),
    [
        ("/runs", "output_dir"),
        ("/runs/x", "output_dir"),
        ("/runs/x/tensorboard/events", "output_dir"),
        ("/checkpoints/x/iter_0000001.partial", "checkpoint.directory"),
    ],
)
def test_a_folder_that_cannot_be_written_is_an_error_of_its_setting(
    config: RunConfig, number: int, file: str, setting: str
) -> None:
    with pytest.raises(UnwritableOutputError) as caught, naming_unwritable_outputs(config):
        raise failing(number, file)
    assert caught.value.exit_code == ExitCode.USAGE
    assert setting in str(caught.value)
    assert file in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        failing(errno.EACCES, "/data/x"),
        failing(errno.EIO, "/runs/x"),
        failing(errno.EACCES, None),
        KeyError("x"),
    ],
)
def test_other_errors_stay_what_they_are(config: RunConfig, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, naming_unwritable_outputs(config):
        raise error
    assert caught.value is error

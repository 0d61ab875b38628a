from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.config.errors import ConfigError
from pipeline.config.load import build_config
from pipeline.step.build import open_training_split, training_batches
from tests.support.shards import random_documents, write_split
from tests.unit.pipeline.config.settings import changed_settings

ALONE: Any = SimpleNamespace(dp_rank=0, dp_size=1)


def test_a_blend_that_ends_before_the_run_is_refused(tmp_path: Path) -> None:
    folder = write_split(tmp_path, random_documents(40))
    for max_epochs in (1, 1000):
        sources = [{"path": str(folder), "max_epochs": max_epochs}]
        config = build_config(changed_settings(data__path=None, data__sources=sources))
        source = open_training_split(config)
        if max_epochs == 1:
            with pytest.raises(ConfigError, match=r"data\.sources: must give the 800 samples of the run"):
                training_batches(config, source, ALONE)
        else:
            assert training_batches(config, source, ALONE).order.samples_by_source(8) == {folder.name: 8}

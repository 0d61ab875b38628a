from pathlib import Path

import pytest

from pipeline.checkpoint.folder import CONFIG_NAME
from pipeline.config.load import dump_config, load_config
from pipeline.run.start import refuse_other_groups
from pipeline.shared.errors import CheckpointError

RECIPE = Path(__file__).parents[4] / "pipeline" / "recipes" / "tiny_ponderlm3.yaml"
OWN_RATE = "optimizer.new_parameters_lr_mult=2"


def test_a_run_goes_on_with_the_groups_of_its_checkpoint(tmp_path: Path) -> None:
    dump_config(load_config(RECIPE, [OWN_RATE]), tmp_path / CONFIG_NAME)

    refuse_other_groups(load_config(RECIPE, ["optimizer.new_parameters_lr_mult=5"]), tmp_path)
    with pytest.raises(CheckpointError, match=r"is None here and 2\.0 in .*1\.0 learns as the backbone"):
        refuse_other_groups(load_config(RECIPE), tmp_path)
    dump_config(load_config(RECIPE), tmp_path / CONFIG_NAME)
    with pytest.raises(CheckpointError, match=r"is 2\.0 here and None"):
        refuse_other_groups(load_config(RECIPE, [OWN_RATE]), tmp_path)

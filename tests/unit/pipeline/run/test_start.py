from pathlib import Path

import pytest

from pipeline.checkpoint.folder import CONFIG_NAME
from pipeline.config.load import dump_config, load_config
from pipeline.run.identity import check_parameter_groups
from pipeline.shared.errors import CheckpointError

RECIPE = Path(__file__).parents[4] / "pipeline" / "recipes" / "tiny_ponderlm3.yaml"
OWN_RATE = "optimizer.new_parameters_lr_mult=2"


def test_a_run_resumes_with_the_groups_of_its_checkpoint(tmp_path: Path) -> None:
    dump_config(load_config(RECIPE, [OWN_RATE]), tmp_path / CONFIG_NAME)

    check_parameter_groups(load_config(RECIPE, ["optimizer.new_parameters_lr_mult=5"]), tmp_path)
    with pytest.raises(CheckpointError, match=r"new_parameters_lr_mult .*None.*2\.0"):
        check_parameter_groups(load_config(RECIPE), tmp_path)
    dump_config(load_config(RECIPE), tmp_path / CONFIG_NAME)
    with pytest.raises(CheckpointError, match=r"new_parameters_lr_mult .*2\.0.*None"):
        check_parameter_groups(load_config(RECIPE, [OWN_RATE]), tmp_path)


@pytest.mark.parametrize(("before", "now"), [("adamw", "muon"), ("muon", "adamw")])
def test_a_run_resumes_with_the_optimizer_of_its_checkpoint(tmp_path: Path, before: str, now: str) -> None:
    stored, changed = (load_config(RECIPE, [f"optimizer.name={name}"]) for name in (before, now))
    dump_config(stored, tmp_path / CONFIG_NAME)

    check_parameter_groups(stored, tmp_path)
    with pytest.raises(CheckpointError, match=rf"optimizer\.name .*{now}.*{before}.*init_from"):
        check_parameter_groups(changed, tmp_path)

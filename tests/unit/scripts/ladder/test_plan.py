"""Ladder files and the runs that follow from them."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from pipeline.config.load import load_config
from pipeline.shared.errors import DataError
from scripts.ladder.plan import Ladder, Part, Row, Run, load_ladder, run_of

SCRIPTS = Path(__file__).parents[4] / "scripts"
FILES = sorted(
    [
        *SCRIPTS.glob("ladder/?.yaml"),
        SCRIPTS / "ladder/savings.yaml",
        SCRIPTS / "ladder/muon.yaml",
        SCRIPTS / "continued_demo/rows.yaml",
        SCRIPTS / "continued_demo/cut.yaml",
    ]
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_row_of_every_ladder_is_a_valid_run(file: Path) -> None:
    ladder = load_ladder(file)
    parts = [*ladder.part_names(), *(["base"] if ladder.base else [])]
    for name in parts:
        part = ladder.part(name)
        for row in part.rows:
            run = run_of(name, part, row, learning_rate=1e-3, seed=7)
            config = load_config(file.parent / ladder.recipe, run.overrides())
            assert (config.seed, config.optimizer.lr, config.optimizer.min_lr) == (7, 1e-3, 1e-4)
            assert config.training.train_iters == part.iterations


def test_settings_of_a_row_go_before_those_of_its_part(tmp_path: Path) -> None:
    file = tmp_path / "ladder.yaml"
    continued = {
        "iterations": 3,
        "learning_rates": [0.5],
        "settings": {"a": 1, "b": 1},
        "rows": {"one": {"settings": {"b": [2, 3]}}},
    }
    file.write_text(
        yaml.safe_dump(
            {"recipe": "r", "tuning_seed": 0, "seeds": [1], "base_method": "vanilla", "continued": continued}
        )
    )

    run = run_of("continued", load_ladder(file).part("continued"), "one", learning_rate=0.5, seed=1)

    assert run.folder == Path("continued/one/lr-0.5/seed-1")
    assert {"a=1", "b=[2, 3]"} <= set(run.overrides())


def test_a_ladder_like_another_has_what_it_does_not_set_from_there() -> None:
    small, large = (load_ladder(SCRIPTS / "ladder" / name) for name in ("s.yaml", "m.yaml"))

    assert large.scratch is not None
    assert small.scratch is not None
    assert list(large.scratch.rows) == list(small.scratch.rows)
    assert large.scratch.rows["loop"] == small.scratch.rows["loop"]
    deeper = small.scratch.rows["vanilla-deeper"].settings | {"model.num_layers": 18}
    assert large.scratch.rows["vanilla-deeper"].settings == deeper
    assert large.seeds == small.seeds
    assert (large.scratch.iterations, small.scratch.iterations) == (950, 600)


def test_muon_shares_the_base_and_the_control_of_size_s() -> None:
    small, muon = (load_ladder(SCRIPTS / "ladder" / name) for name in ("s.yaml", "muon.yaml"))

    def run(ladder: Ladder, part: str) -> Run:
        return run_of(part, ladder.part(part), "vanilla", learning_rate=4e-3, seed=2)

    assert (muon.runs, muon.recipe, muon.base) == ("s", small.recipe, small.base)
    for part in ("base", "continued", "scratch"):
        assert run(muon, part) == run(small, part)
    assert run(muon, "scratch").settings == run(muon, "base").settings


@pytest.mark.parametrize("name", ["absent", "loop"])
def test_a_rate_is_that_of_an_earlier_row(name: str) -> None:
    with pytest.raises(ValidationError, match="earlier row"):
        Part(iterations=1, learning_rates=(1.0,), rows={"vanilla": Row(learning_rate_of=name), "loop": Row()})


@pytest.mark.parametrize(
    "text", ["[", "recipe: r", "{recipe: r, tuning_seed: 0, seeds: [], base_method: vanilla}"]
)
def test_what_is_no_ladder_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "ladder.yaml"
    file.write_text(text)

    with pytest.raises(DataError, match=r"ladder\.yaml"):
        load_ladder(file)

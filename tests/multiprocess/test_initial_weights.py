"""A run is initialized with the weights of another one: which are loaded, which are new, what is refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from megatron_ext.ponder.config import Method
from megatron_ext.weights import whole_tensors
from pipeline.checkpoint.saver import save_checkpoint
from pipeline.checkpoint.state import TrainState
from pipeline.config.load import dump_config
from pipeline.config.schema import RunConfig
from pipeline.run.initial_weights import load_initial_weights
from pipeline.shared.errors import CheckpointError
from pipeline.step.build import TrainingParts, build_training
from tests.support.layouts import LLAMA, VOCAB_SIZE, Layout, Model
from tests.support.ranks import SharedRanks, run_alone

pytestmark = pytest.mark.multiprocess

METHODS = {"vanilla": 1, "ponderlm": 2, "ponderlm2": 3, "ponderlm3": 4}
Values = Mapping[str, Tensor]


def _config(method: str, seed: int, layout: Layout, **sections: Mapping[str, Any]) -> RunConfig:
    ponder = {"pause_token_id": 7} if method == "pause" else {}
    return Model(method=Method(method), backbone=LLAMA, ponder=ponder).config(layout, seed=seed, **sections)


def _weights(parts: TrainingParts) -> Values:
    whole = whole_tensors(parts.module, lambda weight: weight)
    return {name: value.detach().clone() for name, value in whole.items()}


def _save(folder: Path, method: str, groups: ParallelGroups) -> Values:
    config = _config(method, METHODS[method], Layout())
    parts = build_training(config, VOCAB_SIZE, groups)
    with torch.no_grad():
        for weight in parts.module.parameters():
            weight += 0.5
    parts.optimizer.reload_model_params()
    config_file = folder / f"{method}.yaml"
    dump_config(config, config_file)
    save_checkpoint(
        folder / method,
        TrainState(iteration=7, consumed_samples=0),
        module=parts.module,
        optimizer=parts.optimizer,
        scheduler=parts.scheduler,
        groups=groups,
        config_file=config_file,
    )
    return _weights(parts)


def _save_all(folder: Path) -> dict[str, Values]:
    groups = initialize_groups()
    try:
        return {method: _save(folder, method, groups) for method in METHODS}
    finally:
        destroy_groups()


def _start(
    folder: Path,
    source: str,
    target: str,
    layout: Layout,
    changes: Mapping[str, Any],
    vocab_size: int = VOCAB_SIZE,
) -> tuple[Values, Values]:
    """Return the weights before and after loading those of the source."""
    groups = initialize_groups(tensor=layout.tensor, pipeline=layout.pipeline)
    try:
        start = {"path": str(folder / source), "method": source} | changes.get("init_from", {})
        config = _config(target, 9, layout, **{**changes, "init_from": start})
        parts = build_training(config, vocab_size, groups)
        before = _weights(parts)
        load_initial_weights(config, parts, groups, vocab_size=vocab_size)
        after = _weights(parts)
        # An optimizer with stale master weights would restore the initial ones.
        parts.optimizer.step()
        return before, after
    finally:
        destroy_groups()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("starts")


@pytest.fixture(scope="module")
def saved(folder: Path) -> dict[str, Values]:
    found: dict[str, Values] = run_alone(_save_all, folder)
    return found


PAIRS = [
    ("vanilla", "vanilla", ""),
    ("vanilla", "loop", ""),
    ("vanilla", "pause", ""),
    ("vanilla", "ponderlm", ""),
    ("vanilla", "ponderlm2", ""),
    ("vanilla", "ponderlm3", "ponder.router."),
    ("vanilla", "adaponderlm", "ponder.gates."),
    ("vanilla", "adaptive_latent_cot", "ponder.router."),
    ("ponderlm2", "ponderlm3", "ponder.router."),
    ("ponderlm", "adaponderlm", "ponder.gates."),
    ("ponderlm3", "ponderlm3", ""),
]


@pytest.mark.parametrize(("source", "target", "new"), PAIRS)
def test_weights_are_loaded_and_new_ones_keep_their_initial_values(
    folder: Path,
    saved: dict[str, Values],
    source: str,
    target: str,
    new: str,
) -> None:
    before, after = run_alone(_start, folder, source, target, Layout(), {})
    drawn = {name for name in after if new and name.startswith(new)}
    assert bool(drawn) == bool(new)
    assert set(after) - drawn == set(saved[source])
    for name, value in after.items():
        expected = before[name] if name in drawn else saved[source][name]
        assert torch.equal(value, expected), name


def test_a_run_on_another_layout_loads_the_same_weights(
    ranks: SharedRanks, folder: Path, saved: dict[str, Values]
) -> None:
    layout = Layout(tensor=2)
    for _, after in ranks.run(_start, 2, folder, "ponderlm2", "ponderlm3", layout, {}):
        for name, value in saved["ponderlm2"].items():
            assert torch.equal(after[name], value), name


REFUSALS = [
    ("vanilla", "vanilla", {"init_from": {"method": "vanilla", "path": "ponderlm"}}, r"init_from\.method"),
    ("vanilla", "vanilla", {"model": {"num_layers": 3}}, r"model\.num_layers .*\b3\b.*\b4\b"),
    ("vanilla", "vanilla", {"model": {"rotary_base": 500}}, r"model\.rotary_base .*\b500\b.*\b10000\b"),
    ("vanilla", "vanilla", {"init_from": {"iteration": 8}}, "iter_0000008"),
    ("ponderlm3", "ponderlm3", {"ponder": {"num_latent_thoughts": 3}}, r"ponder\.router"),
    (
        "ponderlm2",
        "ponderlm3",
        {"ponder": {"blended_start_iterations": 2}},
        r"ponder\.blended_start_iterations .*\b2\b",
    ),
]


@pytest.mark.parametrize(("source", "target", "changes", "complaint"), REFUSALS)
def test_what_does_not_fit_is_refused(
    folder: Path,
    saved: dict[str, Values],
    source: str,
    target: str,
    changes: dict[str, dict[str, Any]],
    complaint: str,
) -> None:
    if "path" in changes.get("init_from", {}):
        changes = {"init_from": changes["init_from"] | {"path": str(folder / changes["init_from"]["path"])}}
    with pytest.raises(CheckpointError, match=complaint):
        run_alone(_start, folder, source, target, Layout(), changes)


def test_another_vocabulary_is_refused(folder: Path, saved: dict[str, Values]) -> None:
    changes = {"model": {"vocab_size": 70}}
    with pytest.raises(CheckpointError, match=r"\b70\b"):
        run_alone(_start, folder, "vanilla", "vanilla", Layout(), changes, 70)


def test_a_damaged_source_is_refused(folder: Path, saved: dict[str, Values], tmp_path: Path) -> None:
    changes = {"init_from": {"path": str(folder / "vanilla")}}
    state = folder / "vanilla" / "iter_0000007" / "common.pt"
    content = state.read_bytes()
    state.write_bytes(content[:-1])
    try:
        with pytest.raises(CheckpointError, match=r"common\.pt"):
            run_alone(_start, folder, "vanilla", "vanilla", Layout(), changes)
    finally:
        state.write_bytes(content)

"""Checkpoints of Megatron's own GPT model across layouts.

Two ranks, then one, save and load everything once, and the tests check what they report.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from megatron_ext.parallel.groups import destroy_groups
from pipeline.checkpoint.guarded_reading import GuardedReader
from pipeline.checkpoint.loading import load_checkpoint, load_weights
from pipeline.checkpoint.saver import save_checkpoint
from pipeline.checkpoint.state import TrainState
from pipeline.checkpoint.tracker import latest_iteration
from pipeline.checkpoint.writing import prepare_save
from pipeline.shared.errors import CheckpointError
from tests.support.ranks import SharedRanks, run_alone
from tests.support.tiny_gpt import TinyGpt

pytestmark = pytest.mark.multiprocess

SAVED = TrainState(iteration=3, consumed_samples=24, consumed_tokens=384)
Losses = list[tuple[float, float]]
BIAS = "decoder.layers.mlp.linear_fc1.bias"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a rank reports, by case.

    Attributes:
        losses: and gradient norms after a save or a load.
        errors: messages; None where there was no error.
        facts: everything else.
    """

    losses: dict[str, Losses]
    errors: dict[str, str | None]
    facts: dict[str, Any]


def _train_and_save(directory: Path, **settings: Any) -> Losses:
    run = TinyGpt(**settings)
    run.train(3)
    save_checkpoint(
        directory,
        SAVED,
        module=run.module,
        optimizer=run.optimizer,
        scheduler=run.scheduler,
        groups=run.groups,
        config_file=directory.parent / "run_config.yaml",
        keep_last=2,
    )
    losses = run.train(2)
    destroy_groups()
    return losses


def _load_and_train(directory: Path, **settings: Any) -> Losses:
    run = TinyGpt(seed=2, **settings)
    try:
        state = load_checkpoint(
            directory,
            module=run.module,
            optimizer=run.optimizer,
            scheduler=run.scheduler,
            groups=run.groups,
        )
        assert state == SAVED
        return run.train(2)
    finally:
        destroy_groups()


def _error_of_loading(directory: Path, **settings: Any) -> str | None:
    try:
        _load_and_train(directory, **settings)
    except CheckpointError as error:
        return str(error)
    return None


def _host_bytes_of_a_save(**settings: Any) -> tuple[int, int]:
    """Return the bytes of host memory that a save takes here, and those of the state of the whole model."""
    run = TinyGpt(**settings)
    prepared = prepare_save(
        SAVED,
        module=run.module,
        optimizer=run.optimizer,
        scheduler=run.scheduler,
        groups=run.groups,
        copies=False,
    )
    destroy_groups()
    return prepared.host_bytes, 12 * sum(weight.numel() for weight in run.module.parameters())


def _bytes_read(directory: Path) -> int:
    """Return the bytes of tensors that this rank reads when a run resumes."""
    read: list[int] = []
    give = GuardedReader._give

    def counted(reader: GuardedReader, item: Any, content: bytes, planner: Any) -> None:
        read.append(len(content))
        give(reader, item, content, planner)

    with patch.object(GuardedReader, "_give", counted):
        _load_and_train(directory)
    return sum(read)


def _on_two_ranks(folder: Path) -> Found:
    losses = {"tp2": _train_and_save(folder / "tp2", tensor=2)}
    losses["tp2 -> tp2"] = _load_and_train(folder / "tp2", tensor=2)
    losses["tp2 -> dp2"] = _load_and_train(folder / "tp2", tensor=1)
    losses["dp2"] = _train_and_save(folder / "dp2", tensor=1)
    written = sorted((folder / "dp2" / "iter_0000003").glob("__*.distcp"))
    facts: dict[str, Any] = {"bytes by rank": [path.stat().st_size for path in written]}
    facts["host bytes"] = _host_bytes_of_a_save()
    facts["bytes read"] = _bytes_read(folder / "dp2")
    losses["buckets"] = _train_and_save(folder / "buckets", bucket_size=1)
    losses["buckets -> tp2"] = _load_and_train(folder / "buckets", tensor=2)
    losses["buckets -> buckets"] = _load_and_train(folder / "buckets", bucket_size=1)
    losses["dp2 -> dp2"] = _load_and_train(folder / "dp2", tensor=1)
    losses["dp2 -> tp2"] = _load_and_train(folder / "dp2", tensor=2)
    bf16: dict[str, Any] = {"tensor": 2, "precision": "bf16"}
    losses["bf16"] = _train_and_save(folder / "bf16", **bf16)
    losses["bf16 -> bf16"] = _load_and_train(folder / "bf16", **bf16)
    plain: dict[str, Any] = {"tensor": 2, "use_distributed_optimizer": False}
    losses["plain"] = _train_and_save(folder / "plain", **plain)
    losses["plain -> plain"] = _load_and_train(folder / "plain", **plain)
    errors: dict[str, str | None] = {"cannot be written": None}
    errors["fewer tensors"] = _error_of_loading(folder / "tp2", tensor=2, has_biases=False)
    try:
        _train_and_save(folder / "run_config.yaml" / "inside a file", tensor=2)
    except CheckpointError as error:
        errors["cannot be written"] = str(error)
    destroy_groups()
    return Found(losses=losses, errors=errors, facts=facts)


def _on_one_rank(folder: Path) -> Found:
    losses = {name: _load_and_train(folder / name) for name in ("tp2", "dp2")}
    losses["plain"] = _load_and_train(folder / "plain", use_distributed_optimizer=False)
    losses["without biases"] = _train_and_save(folder / "no_biases", has_biases=False)
    errors = {
        "more tensors": _error_of_loading(folder / "no_biases"),
        "other shapes": _error_of_loading(folder / "tp2", num_layers=3),
        "missing": _error_of_loading(folder / "nowhere"),
    }
    facts = {"weights": _weights_differ(folder), "untrained": _save_untrained(folder / "untrained")}
    truncated = max((folder / "dp2" / "iter_0000003").glob("*.distcp"), key=lambda path: path.stat().st_size)
    truncated.write_bytes(truncated.read_bytes()[:1000])
    errors["truncated"] = _error_of_loading(folder / "dp2")
    return Found(losses=losses, errors=errors, facts=facts)


def _weights_differ(folder: Path) -> list[str]:
    """Return the names of weights that differ between loading everything and loading the weights alone."""
    whole = TinyGpt(seed=2)
    load_checkpoint(
        folder / "tp2",
        module=whole.module,
        optimizer=whole.optimizer,
        scheduler=whole.scheduler,
        groups=whole.groups,
    )
    destroy_groups()
    weights = TinyGpt(seed=3)
    assert load_weights(folder / "tp2", module=weights.module, groups=weights.groups) == SAVED
    destroy_groups()
    expected = dict(whole.module.named_parameters())
    return [
        name for name, value in weights.module.named_parameters() if not torch.equal(value, expected[name])
    ]


def _save_untrained(directory: Path) -> int | None:
    run = TinyGpt()
    save_checkpoint(
        directory,
        TrainState(iteration=0, consumed_samples=0),
        module=run.module,
        optimizer=run.optimizer,
        scheduler=run.scheduler,
        groups=run.groups,
        config_file=directory.parent / "run_config.yaml",
    )
    destroy_groups()
    return latest_iteration(directory)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    (folder / "run_config.yaml").write_text("name: tiny\n")
    return folder


@pytest.fixture(scope="module")
def two_ranks(ranks: SharedRanks, folder: Path) -> list[Found]:
    return ranks.run(_on_two_ranks, 2, folder)


@pytest.fixture(scope="module")
def one_rank(folder: Path, two_ranks: list[Found]) -> Found:
    found: Found = run_alone(_on_one_rank, folder)
    return found


@pytest.mark.parametrize(
    "name", ["tp2 -> tp2", "dp2 -> dp2", "bf16 -> bf16", "plain -> plain", "buckets -> buckets"]
)
def test_on_the_same_layout_the_run_resumes_bit_for_bit(two_ranks: list[Found], name: str) -> None:
    for found in two_ranks:
        assert found.losses[name] == found.losses[name.split(" -> ")[0]]


@pytest.mark.parametrize("name", ["tp2 -> dp2", "dp2 -> tp2", "buckets -> tp2"])
def test_on_another_layout_of_two_ranks_the_run_resumes(two_ranks: list[Found], name: str) -> None:
    for found in two_ranks:
        _assert_close(found.losses[name], found.losses[name.split(" -> ")[0]])


@pytest.mark.parametrize("name", ["tp2", "dp2", "plain"])
def test_on_one_rank_the_run_of_two_resumes(two_ranks: list[Found], one_rank: Found, name: str) -> None:
    _assert_close(one_rank.losses[name], two_ranks[0].losses[name])


def _assert_close(losses: Losses, expected: Losses) -> None:
    assert torch.tensor(losses).allclose(torch.tensor(expected), rtol=1e-5, atol=0)


def test_a_checkpoint_has_megatrons_files_the_config_and_the_state(
    folder: Path, two_ranks: list[Found]
) -> None:
    names = {path.name for path in (folder / "tp2" / "iter_0000003").iterdir()}
    assert {".metadata", "metadata.json", "common.pt", "run_config.yaml", "train_state.json"} <= names
    assert {"__0_0.distcp", "__1_0.distcp"} <= names
    assert (folder / "tp2" / "latest_checkpointed_iteration.txt").read_text() == "3\n"


def test_data_parallel_ranks_share_the_writing(two_ranks: list[Found]) -> None:
    first, second = two_ranks[0].facts["bytes by rank"]
    assert 0.7 < first / second < 1.4


def test_a_rank_holds_only_the_state_that_it_writes(two_ranks: list[Found]) -> None:
    held = [found.facts["host bytes"] for found in two_ranks]
    (whole,) = {whole for _, whole in held}
    assert sum(own for own, _ in held) == whole
    assert max(own for own, _ in held) < 0.6 * whole


def test_data_parallel_ranks_share_the_reading(folder: Path, two_ranks: list[Found]) -> None:
    read = [found.facts["bytes read"] for found in two_ranks]
    assert sum(read) <= sum(two_ranks[0].facts["bytes by rank"])
    assert 0.7 < read[0] / read[1] < 1.4


def test_weights_alone_load_without_an_optimizer(one_rank: Found) -> None:
    assert one_rank.facts["weights"] == []


def test_a_model_that_was_never_trained_can_be_saved(one_rank: Found) -> None:
    assert one_rank.facts["untrained"] == 0


def test_tensors_that_the_model_lacks_are_named_on_every_rank(two_ranks: list[Found]) -> None:
    for found in two_ranks:
        assert BIAS in (found.errors["fewer tensors"] or "")


def test_tensors_that_the_checkpoint_lacks_are_named(one_rank: Found) -> None:
    assert BIAS in (one_rank.errors["more tensors"] or "")


def test_other_shapes_are_refused(one_rank: Found) -> None:
    assert one_rank.errors["other shapes"] is not None


def test_a_truncated_file_is_refused(one_rank: Found) -> None:
    assert one_rank.errors["truncated"] is not None


def test_a_missing_checkpoint_is_an_error(folder: Path, one_rank: Found) -> None:
    assert str(folder / "nowhere") in (one_rank.errors["missing"] or "")


def test_a_folder_that_cannot_be_written_is_an_error_on_every_rank(two_ranks: list[Found]) -> None:
    for found in two_ranks:
        assert found.errors["cannot be written"] is not None

"""A checkpoint knows what it belongs to, wherever it lies, and is used with nothing else."""

import json
import logging
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import yaml
from tokenizers import decoders, models, pre_tokenizers, trainers
from typer.testing import CliRunner, Result

from data_prep.inputs.documents import TextFolder
from data_prep.run import prepare
from data_prep.tokenizers.tokenizer_training import TokenizerTraining, train_tokenizer
from pipeline.checkpoint.identity import read_identity
from pipeline.checkpoint.state import read_train_state
from pipeline.cli import app
from pipeline.shared.errors import CheckpointError, DataError
from tests.support.corpus import build_request, prepare_here, write_corpus
from tests.support.foreign import refresh_checksums
from tests.support.runs import one_rank
from tests.support.tiny_run import made_once

pytestmark = pytest.mark.end_to_end

SETTINGS = ("model.num_layers=1", "optimizer.lr_warmup_iters=0", "metrics.tensorboard=false")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def project(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and settings, whose paths are relative, and a run of two iterations in it."""

    def make(folder: Path) -> None:
        home = folder / "home"
        home.mkdir()
        shutil.copytree(recipe.parent / "data", home / "data")
        settings = yaml.safe_load(recipe.read_text())
        settings |= {"output_dir": "runs/own", "data": {"path": "data"}}
        (home / "recipe.yaml").write_text(yaml.safe_dump(settings))
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(home)
            arguments = ("parallel.tensor=1", "train-iters=2", "checkpoint.interval=1", *SETTINGS)
            result = invoke("train", "--config", "recipe.yaml", *arguments)
            assert result.exit_code == 0, result.output

    return made_once(tmp_path_factory, "project", make) / "home"


@pytest.fixture
def copy(project: Path, tmp_path: Path) -> Path:
    """The project, moved elsewhere."""
    shutil.copytree(project, tmp_path / "moved")
    return tmp_path / "moved"


def resume(project: Path, recipe: Path, *changes: str) -> Result:
    common = ("train-iters=3", *SETTINGS)
    data = (f"data.path={project / 'data'}",)
    return invoke("train", "--config", recipe, *one_rank(project / "runs/own", *data, *common, *changes))


def newest(project: Path) -> Path:
    return max((project / "runs/own/checkpoints").glob("iter_*"))


def other_data(project: Path, *, tokenizer: Path | None = None) -> Path:
    """Data of another text, by the same tokenizer or another one."""
    source = write_corpus(project / "other_text", num_documents=15)
    folder = project / "other_data"
    prepare_here(source, tokenizer or project / "data/tokenizer.model", folder)
    return folder


def other_tokenizer(project: Path) -> Path:
    text = project / "words"
    text.mkdir()
    letters = random.Random(3)
    words = ["".join(letters.choices("abcdefghilmnoprstu", k=letters.randint(2, 7))) for _ in range(3000)]
    (text / "words.txt").write_text(" ".join(words))
    source = TextFolder(root=text, label="words")
    training = TokenizerTraining(
        source=source, output=project / "other.model", vocab_size=320, heldout_fraction=0.0
    )
    return train_tokenizer(training).path


def test_a_checkpoint_has_its_identity_and_its_tokenizer(project: Path) -> None:
    identity = read_identity(newest(project))
    assert identity is not None
    assert identity.tokenizer is not None
    assert identity.data is not None
    assert (identity.method, identity.seed, identity.row_length) == ("ponderlm3", 1234, 32)
    assert (identity.batch_size, identity.order, identity.vocab_size) == (8, "shuffled", 320)
    stored = newest(project) / "tokenizer.model"
    assert stored.read_bytes() == (project / "data/tokenizer.model").read_bytes()
    assert identity.tokenizer.vocab_size == 320
    assert identity.data[0].num_tokens > 1000
    shown = invoke("checkpoint", "show", newest(project), "--json")
    assert json.loads(shown.stdout)["identity"]["seed"] == 1234
    assert invoke("checkpoint", "show", newest(project)).exit_code == 0


CHANGES = {
    "seed": "seed=99",
    "row_length": "training.seq_length=16",
    "batch_size": "training.global_batch_size=16",
    "order": "data.order=sequential",
    "method": "ponder.penalty_weight=1.0",
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_fact_is_refused_unless_it_is_accepted_and_then_recorded(
    copy: Path, recipe: Path, name: str
) -> None:
    refused = resume(copy, recipe, CHANGES[name])
    assert isinstance(refused.exception, CheckpointError), refused.output
    assert name in str(refused.exception)
    assert not (copy / "runs/own/checkpoints/iter_0000003").exists()

    accepted = resume(copy, recipe, CHANGES[name], f"resume.accept_changes=[{name}]")
    assert accepted.exit_code == 0, accepted.output
    identity = read_identity(newest(copy))
    assert identity is not None
    assert [(change.name, change.iteration) for change in identity.changes] == [(name, 2)]


def test_other_data_are_refused_unless_they_are_accepted(copy: Path, recipe: Path) -> None:
    changed = f"data.path={other_data(copy)}"
    refused = resume(copy, recipe, changed)
    assert isinstance(refused.exception, CheckpointError)
    assert "data" in str(refused.exception)
    assert resume(copy, recipe, changed, "resume.accept_changes=[data]").exit_code == 0


def test_another_tokenizer_is_always_refused(copy: Path, recipe: Path) -> None:
    data = other_data(copy, tokenizer=other_tokenizer(copy))
    names = ", ".join(["data", *CHANGES])
    refused = resume(copy, recipe, f"data.path={data}", f"resume.accept_changes=[{names}]")
    assert isinstance(refused.exception, CheckpointError)
    identity = read_identity(newest(copy))
    assert identity is not None
    assert identity.tokenizer is not None
    assert identity.tokenizer.sha256[:12] in str(refused.exception)

    evaluated = invoke("eval", copy / "runs/own/checkpoints", "--iters", 1, "--data", data)
    assert isinstance(evaluated.exception, CheckpointError)
    assert identity.tokenizer.sha256[:12] in str(evaluated.exception)


def test_what_may_change_freely_does(copy: Path, recipe: Path) -> None:
    changes = ("lr=1e-3", "ponder.pruning_threshold=0.5", "evaluation.iters=1", "metrics.interval=2")
    assert resume(copy, recipe, *changes, "training.micro_batch_size=4").exit_code == 0


def without_identity(folder: Path) -> None:
    (folder / "identity.json").unlink()
    (folder / "tokenizer.model").unlink()
    refresh_checksums(folder)


def test_an_older_checkpoint_is_used_with_one_notice(
    copy: Path, recipe: Path, caplog: pytest.LogCaptureFixture
) -> None:
    without_identity(newest(copy))
    assert text_of(copy / "runs/own/checkpoints", copy / "texts.jsonl")["num_prompt_tokens"] > 0
    with caplog.at_level(logging.WARNING, "pipeline.run.identity"):
        assert resume(copy, recipe).exit_code == 0
    assert len([one for one in caplog.records if one.name == "pipeline.run.identity"]) == 1
    assert read_identity(newest(copy)) is not None

    refused = resume(copy, recipe, "seed=99", "train-iters=4")
    assert isinstance(refused.exception, CheckpointError)


def text_of(checkpoint: Path, file: Path, *options: object) -> dict[str, Any]:
    arguments = ("--prompt", "def value", "--max-new-tokens", 2, "--json-lines", file)
    result = invoke("generate", checkpoint, *arguments, *options)
    assert result.exit_code == 0, (result.output, result.exception)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_a_moved_project_gives_the_same_from_every_folder(
    project: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoints = copy / "runs/own/checkpoints"
    here, there = (text_of(one / "runs/own/checkpoints", tmp_path / "text.jsonl") for one in (project, copy))
    assert here == there

    assert invoke("eval", "moved/runs/own/checkpoints", "--iters", 1).exit_code == 0
    evaluation = json.loads((copy / "runs/own/evaluation.json").read_text())
    assert not (project / "runs/own/evaluation.json").exists()
    assert Path(evaluation["checkpoint"]).resolve() == newest(copy)
    assert invoke("report", copy / "runs/own").exit_code == 0

    # Of a checkpoint from before, the folder follows from its place.
    without_identity(newest(copy))
    (copy / "runs/own/evaluation.json").unlink()
    assert invoke("eval", checkpoints, "--iters", 1).exit_code == 0
    assert json.loads((copy / "runs/own/evaluation.json").read_text())["loss"] == evaluation["loss"]


def test_without_its_data_a_checkpoint_generates_and_says_where_it_looked(
    project: Path, copy: Path, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shutil.move(newest(copy), shared)
    shutil.rmtree(copy)
    (folder,) = shared.iterdir()
    text_of(folder, tmp_path / "text.jsonl")
    settings = (folder / "run_config.yaml").read_text().replace("path: data", "path: nowhere")
    (folder / "run_config.yaml").write_text(settings)
    refresh_checksums(folder)
    evaluated = invoke("eval", folder, "--iters", 1)
    assert isinstance(evaluated.exception, DataError)
    assert str(project / "nowhere") in str(evaluated.exception)
    assert "--data" in str(evaluated.exception)
    assert invoke("eval", folder, "--iters", 1, "--data", project / "data").exit_code == 0
    assert (shared / "evaluation.json").is_file()


def test_results_about_a_mean_or_a_copy_are_not_those_of_the_run(copy: Path) -> None:
    run, mean, single = copy / "runs/own", copy / "mean", copy / "single"
    assert invoke("eval", run / "checkpoints", "--iters", 1).exit_code == 0
    own = (run / "evaluation.json").read_bytes()
    averaged = invoke("checkpoint", "average", run / "checkpoints", 1, 2, "--output", mean)
    assert averaged.exit_code == 0, averaged.exception
    shutil.copytree(newest(copy), single / "iter_0000002")
    for folder in (mean, single / "iter_0000002"):
        assert invoke("eval", folder, "--iters", 1).exit_code == 0
        options = ("--rows", 1, "--tokens", 8)
        assert invoke("verify", folder, *options).exit_code in (0, 1)
        assert invoke("compare", folder, "--iters", 1, "--output", copy / "plot.png").exit_code == 0
    for folder in (mean, single):
        for name in ("evaluation.json", "verification.json", "pruning_curve.json"):
            assert (folder / name).is_file(), name
    assert (run / "evaluation.json").read_bytes() == own
    assert not (run / "verification.json").exists()

    shutil.copy(mean / "evaluation.json", run / "evaluation.json")
    shown = invoke("report", run)
    assert isinstance(shown.exception, DataError)


def test_a_stored_tokenizer_that_was_replaced_is_refused(copy: Path, tmp_path: Path) -> None:
    folder = newest(copy)
    shutil.copy(other_tokenizer(copy), folder / "tokenizer.model")
    refresh_checksums(folder)
    result = invoke("generate", folder, "--prompt", "def", "--max-new-tokens", 1)
    assert isinstance(result.exception, CheckpointError)


def test_prompts_beyond_the_context_are_refused_or_cut(copy: Path, tmp_path: Path) -> None:
    checkpoints, long = copy / "runs/own/checkpoints", tmp_path / "long.txt"
    long.write_text("def value index token " * 60)
    options: Sequence[object] = ("--prompts-file", long, "--max-new-tokens", 4)
    refused = invoke("generate", checkpoints, *options)
    assert isinstance(refused.exception, DataError)
    assert "64" in str(refused.exception)
    lines = tmp_path / "texts.jsonl"
    assert invoke("generate", checkpoints, *options, "--cut-prompts", "--json-lines", lines).exit_code == 0
    assert json.loads(lines.read_text())["num_prompt_tokens"] == 60
    grown = invoke("generate", checkpoints, "--prompt", "def", "--max-new-tokens", 100)
    assert grown.exit_code == 2
    assert "--max-new-tokens" in grown.stderr


def test_nothing_is_trained_by_a_refused_resume(copy: Path, recipe: Path) -> None:
    before = read_train_state(newest(copy))
    resume(copy, recipe, "seed=5")
    assert read_train_state(newest(copy)) == before


def byte_tokenizer(path: Path) -> Path:
    """Write a tokenizer of bytes with tokens that begin and end documents."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=258,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["a"], trainer)
    tokenizer.save(str(path))
    return path


def test_prompts_and_exports_begin_as_the_documents_of_the_training(recipe: Path, tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    source = write_corpus(tmp_path / "text", num_documents=15)
    file = byte_tokenizer(tmp_path / "tokenizer.json")
    prepare(build_request(source, file, data, eod_token="</s>", bos_token="<s>"))
    small = ("train-iters=1", f"data.path={data}", *SETTINGS)
    assert invoke("train", "--config", recipe, *one_rank(run, *small)).exit_code == 0
    shutil.rmtree(data)

    text = text_of(run / "checkpoints", tmp_path / "text.jsonl")
    assert text["num_prompt_tokens"] == 1 + len("def value")
    assert text["pieces"][:2] == ["", "d"]
    assert text["prompt"] == "def value"
    assert text["nll"][0] is None
    assert text["nll"][1] > 0

    exported = tmp_path / "exported"
    result = invoke("convert", "to-hf", run / "checkpoints", "--output", exported)
    assert result.exit_code == 0, result.exception
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    ids = tokenizer("def value")["input_ids"]
    own = tokenizers.Tokenizer.from_file(str(file))
    assert ids == [own.token_to_id("<s>"), *own.encode("def value", add_special_tokens=False).ids]
    assert json.loads((exported / "generation_config.json").read_text())["bos_token_id"] == ids[0]

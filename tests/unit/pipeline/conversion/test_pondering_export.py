"""Pondering models on their way to a Hugging Face folder and back: files, settings, weights, refusals."""

import json
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from megatron_ext.model.config import Architecture
from megatron_ext.ponder.config import Method, RouterForm, RouterStart
from pipeline.checkpoint.state import TrainState
from pipeline.cli import app
from pipeline.config.load import load_config
from pipeline.config.ponder_section import PonderSection
from pipeline.conversion.comparison import LogitMismatchError, compare_logits
from pipeline.conversion.from_hf import ImportOptions, from_hf
from pipeline.conversion.hf_weights import HuggingFaceWeights
from pipeline.conversion.model_card import CardFacts, find_evaluation, find_tasks, render_model_card
from pipeline.conversion.run_settings import one_process
from pipeline.conversion.to_hf import ExportOptions, to_hf
from pipeline.conversion.tokenizer_files import read_token_ids
from pipeline.evaluation.results import EvaluationResult, save_json
from pipeline.evaluation.tasks import save_task_report
from pipeline.shared.errors import ConversionError
from tests.support.hf_models import read_all
from tests.support.ponder_models import AUTHORS
from tests.support.pondering_exports import write_checkpoint
from tests.support.ranks import run_alone
from tests.unit.pipeline.report.sample_data import made_up_tasks

pytest.importorskip("transformers")

FORM_SETTINGS = {field.name for field in fields(RouterForm)} - {"router_start"}
NO_TOKENIZER = ImportOptions(needs_tokenizer=False)
MODELS = {
    "loop": (Method.LOOP, Architecture.LLAMA, False),
    "pause": (Method.PAUSE, Architecture.GPT_NEOX, True),
    "ponderlm": (Method.PONDERLM, Architecture.LLAMA, False),
    "ponderlm2": (Method.PONDERLM2, Architecture.GPT_NEOX, False),
    "adaponderlm": (Method.ADAPONDERLM, Architecture.LLAMA, True),
    "ponderlm3": (Method.PONDERLM3, Architecture.GPT_NEOX, False),
    "authors": (
        Method.PONDERLM3,
        Architecture.LLAMA,
        False,
        # How the router started is not part of a trained model.
        replace(AUTHORS["form"], router_start=RouterStart.LAST_STEP),
    ),
    "adaptive_latent_cot": (Method.ADAPTIVE_LATENT_COT, Architecture.LLAMA, False),
}
EVALUATION = EvaluationResult(
    checkpoint="somewhere",
    iteration=0,
    split="heldout",
    method="ponderlm3",
    num_latent_thoughts=3,
    num_jacobi_iterations=2,
    pruning_threshold=1e-2,
    num_tokens=1000,
    loss=2.0,
    unigram_entropy=4.0,
    steps_count=(100, 200, 300, 400),
    nll_by_steps=(1.0, 1.5, 2.0, 2.5),
    loss_quartiles=(),
    residuals=(0.1, 0.01),
    tokens_per_second=1.0,
)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return run_alone(_write_all, tmp_path_factory.mktemp("native"))


def _write_all(directory: Path) -> dict[str, Path]:
    return {name: write_checkpoint(directory / name, *model)[0] for name, model in MODELS.items()}


@pytest.fixture(scope="module")
def exports(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("exported")
    for name, checkpoint in checkpoints.items():
        to_hf(checkpoint, directory / name, ExportOptions(needs_tokenizer=False))
    return {name: directory / name for name in checkpoints}


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_weights_and_settings_are_the_same(
    checkpoints: dict[str, Path], exports: dict[str, Path], tmp_path: Path, name: str
) -> None:
    folder, certificate = from_hf(exports[name], tmp_path / "native", NO_TOKENIZER)
    to_hf(folder, tmp_path / "again", ExportOptions(needs_tokenizer=False, shard_bytes=20_000))

    assert certificate.logits.is_within_tolerance
    assert "forward of training and cached decoding" in certificate.logits.note
    assert not certificate.tensors.new
    first, second = (load_config(path / "run_config.yaml") for path in (checkpoints[name], folder))
    assert second.ponder == first.ponder
    # How far a layout pads the vocabulary is no matter of the model.
    assert second.model.model_copy(update={"make_vocab_size_divisible_by": 16}) == first.model
    expected, found = read_all(exports[name]), read_all(tmp_path / "again")
    assert set(found) == set(expected)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 1
    settings = [
        json.loads((path / "config.json").read_text()) for path in (exports[name], tmp_path / "again")
    ]
    assert settings[0] == settings[1]


def test_a_model_that_transformers_has_saved_again_is_taken_in(
    exports: dict[str, Path], tmp_path: Path
) -> None:
    from pipeline.conversion.hf_model.modeling_megaponder import MegaPonderForCausalLM

    model = MegaPonderForCausalLM.from_pretrained(exports["adaponderlm"])
    model.save_pretrained(tmp_path / "saved")

    folder, certificate = from_hf(tmp_path / "saved", tmp_path / "native", NO_TOKENIZER)

    assert certificate.logits.is_within_tolerance
    assert load_config(folder / "run_config.yaml").ponder.method is Method.ADAPONDERLM


def test_ponderlm2_becomes_ponderlm3_with_a_router_of_its_own(
    exports: dict[str, Path], tmp_path: Path
) -> None:
    options = replace(NO_TOKENIZER, method=Method.PONDERLM3)

    folder, certificate = from_hf(exports["ponderlm2"], tmp_path / "native", options)

    assert load_config(folder / "run_config.yaml").ponder.method is Method.PONDERLM3
    assert all(name.startswith("ponder.router.") for name in certificate.tensors.new)
    # What is compared is the PonderLM-2 that came.
    assert "ponderlm2: forward" in certificate.logits.note
    assert certificate.logits.is_within_tolerance


def test_an_export_from_before_the_router_had_forms_is_taken_in(
    exports: dict[str, Path], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    settings = json.loads((exports["ponderlm3"] / "config.json").read_text())
    kept = {key: value for key, value in settings.items() if key not in FORM_SETTINGS}
    assert len(settings) - len(kept) == len(FORM_SETTINGS)
    (source / "config.json").write_text(json.dumps(kept))
    (source / "model.safetensors").write_bytes((exports["ponderlm3"] / "model.safetensors").read_bytes())

    folder, certificate = from_hf(source, tmp_path / "native", NO_TOKENIZER)

    assert certificate.logits.is_within_tolerance
    assert load_config(folder / "run_config.yaml").ponder.router_form == RouterForm()


def test_rounded_weights_are_compared_as_rounded(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    options = ExportOptions(needs_tokenizer=False, dtype=torch.bfloat16)

    certificate = to_hf(checkpoints["ponderlm3"], tmp_path / "exported", options)

    assert certificate.tensors.num_rounded > 0
    assert certificate.logits.is_within_tolerance
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"backbone": "gpt2"}, "backbone: must be one of gpt_neox, llama, but is 'gpt2'"),
        ({"method": "thinking"}, "method: must be one of vanilla, loop"),
        ({"num_latent_thoughts": None}, "num_latent_thoughts:"),
        ({"multiply_embedding": True}, "multiply_embedding:"),
        ({"method": "ponderlm2", "pre_pass": True}, "pre_pass:"),
        ({"auto_map": {"AutoConfig": "other.Config"}}, "auto_map:"),
        ({"rope_theta": 5}, "rope_theta:"),
        ({"head_dim": 16}, "head_dim:"),
    ],
)
def test_a_config_with_other_settings_is_refused(
    exports: dict[str, Path], tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file in ("config.json", "model.safetensors"):
        (source / file).write_bytes((exports["ponderlm3"] / file).read_bytes())
    change_config(source, **changes)

    with pytest.raises(ConversionError) as raised:
        from_hf(source, tmp_path / "native", NO_TOKENIZER)

    assert complaint in str(raised.value)
    assert not (tmp_path / "native").exists()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ponderlm3", {"pruning_threshold": 0.3}),
        ("ponderlm3", {"scale_embeds": False}),
        ("adaponderlm", {"pruning_threshold": 0.9}),
        ("adaptive_latent_cot", {"pruning_threshold": 0.9}),
        ("adaptive_latent_cot", {"step_input_scale": 2.0}),
        ("loop", {"num_latent_thoughts": 1}),
        ("ponderlm", {"residual": "from_embedding"}),
        ("ponderlm2", {"num_jacobi_iterations": 0}),
        ("authors", {"mask_in_training": "soft"}),
        ("authors", {"attention_scale_extra": 0}),
        ("authors", {"pre_pass": False}),
        ("authors", {"router_damping": 0.4}),
        ("authors", {"undamped_sweeps": 2}),
        ("authors", {"readout_from": "final"}),
    ],
)
def test_the_comparison_sees_a_wrong_setting(
    checkpoints: dict[str, Path], exports: dict[str, Path], name: str, change: dict[str, Any]
) -> None:
    config = load_config(checkpoints[name] / "run_config.yaml")
    wrong = one_process(config, ponder=config.ponder.model_dump(mode="json") | change)

    with pytest.raises(LogitMismatchError):
        compare_logits(
            HuggingFaceWeights(exports[name]), checkpoints[name], wrong, tolerance=1e-3, allow_mismatch=False
        )


def test_a_wrong_weight_is_seen_and_nothing_is_written(exports: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_bytes((exports["ponderlm3"] / "config.json").read_bytes())
    values = load_file(exports["ponderlm3"] / "model.safetensors")
    del values["ponder.router.2.bias"]
    save_file(values, source / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ConversionError, match=r"ponder\.router\.2\.bias"):
        from_hf(source, tmp_path / "native", NO_TOKENIZER)

    assert not (tmp_path / "native").exists()


def test_the_card_describes_the_model_and_its_evaluation(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    output, file = tmp_path / "exported", tmp_path / "evaluation.json"
    save_json(EVALUATION, file)
    command = ["convert", "to-hf", str(checkpoints["ponderlm3"]), "--output", str(output), "--no-tokenizer"]

    names = ["--license", "apache-2.0", "--base-model", "somebody/base"]

    result = CliRunner().invoke(app, [*command, "--evaluation", str(file), *names])

    assert result.exit_code == 0, result.output
    card = (output / "README.md").read_text()
    for part in (
        "library_name: transformers",
        "up to 3 latent thoughts",
        "| `pruning_threshold` | 0.01 |",
        "trust_remote_code=True, dtype=torch.float32",
        "| loss | 2.0000 nats per token (perplexity 7.39) |",
        "| mean extra steps of a token | 2.00 of 3 |",
        "0: 10.0%, 1: 20.0%, 2: 30.0%, 3: 40.0%",
    ):
        assert part in card, card
    assert "AutoTokenizer" not in card
    matter = yaml.safe_load(card.split("---\n")[1])
    assert (matter["license"], matter["base_model"]) == ("apache-2.0", "somebody/base")
    assert matter["tags"] == ["megaponder", "ponderlm3", "arxiv:2603.02023"]
    (index,) = matter["model-index"]
    assert {one["type"]: one["value"] for one in index["results"][0]["metrics"]} == {
        "perplexity": pytest.approx(EVALUATION.perplexity, abs=1e-6),
        "loss": EVALUATION.loss,
    }
    assert "(https://arxiv.org/abs/2603.02023)" in card
    assert f"| torch | {version('torch')} |" in card
    # The weights were converted, and not trained.
    assert "| iterations |" not in card
    assert "\n\n\n" not in card
    assert (output / "generation_config.json").is_file()
    certificate = json.loads((output / "conversion.json").read_text())
    assert {"README.md", "modeling_megaponder.py", "model.safetensors"} <= set(certificate["written_files"])


def test_the_card_of_a_trained_model_describes_its_training(checkpoints: dict[str, Path]) -> None:
    config = load_config(checkpoints["adaponderlm"] / "run_config.yaml")
    facts = CardFacts(
        config=config,
        state=TrainState(iteration=500, consumed_samples=500),
        evaluation=None,
        num_parameters=1234567,
        dtype="bfloat16",
        tokenizer_file="tokenizer.json",
    )

    card = render_model_card(facts)

    for part in (
        "| data | tiny-shakespeare |",
        "| tokens | 8,000 |",
        "| iterations | 500, of 1 sequences each |",
        "| parameters | 1,234,567 |",
        "None was recorded when the model was exported.",
        'padding_side="left"',
        "gates decide token by token",
    ):
        assert part in card, card
    assert "somewhere" not in card
    assert "Jacobi" not in card


def test_the_card_of_a_plain_model_needs_no_code_and_shows_tasks(checkpoints: dict[str, Path]) -> None:
    config = load_config(checkpoints["adaponderlm"] / "run_config.yaml")
    plain = config.model_copy(update={"ponder": PonderSection(method=Method.VANILLA)})
    facts = CardFacts(
        config=plain,
        state=TrainState(iteration=500, consumed_samples=500),
        evaluation=None,
        num_parameters=1234567,
        dtype="bfloat16",
        tokenizer_file="tokenizer.json",
        tasks=made_up_tasks(),
    )

    card = render_model_card(facts)

    assert "trust_remote_code" not in card
    assert "license" not in card
    assert "| piqa, 0 shots | acc 0.5625, acc_norm 0.5875 |" in card
    matter = yaml.safe_load(card.split("---\n")[1])
    assert matter["tags"] == ["megaponder", "vanilla"]
    assert matter["model-index"][0]["results"][0]["dataset"]["name"] == "piqa"
    assert "\n\n\n" not in card


def test_scores_on_tasks_of_another_iteration_are_not_taken(tmp_path: Path) -> None:
    assert find_tasks(tmp_path, 400) is None
    save_task_report(made_up_tasks(), tmp_path / "tasks.json")
    assert find_tasks(tmp_path, 400) == made_up_tasks()
    assert find_tasks(tmp_path, 300) is None


def test_an_evaluation_of_another_iteration_is_not_taken(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "iter_0000007"
    assert find_evaluation(checkpoint, None, 7) is None
    save_json(EVALUATION, tmp_path / "evaluation.json")

    assert find_evaluation(checkpoint, None, 7) is None
    assert find_evaluation(checkpoint, None, 0) == EVALUATION
    with pytest.raises(ConversionError, match=r"7.*0"):
        find_evaluation(checkpoint, tmp_path / "evaluation.json", 7)


def test_the_end_of_a_text_is_the_tokenizers_where_nobody_wrote_it_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = {"model": {"type": "WordLevel", "vocab": {"a": 0, "<end>": 1}, "unk_token": "a"}}
    added = {"id": 1, "content": "<end>", "special": True, "single_word": False, "lstrip": False}
    added |= {"rstrip": False, "normalized": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**tokenizer, "added_tokens": [added]}))
    assert read_token_ids(tmp_path) == {}
    assert [record.levelname for record in caplog.records] == ["WARNING"]

    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<end>"}')
    assert read_token_ids(tmp_path) == {"eos_token_id": 1}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 0, "bos_token_id": 1, "top_k": 3}')
    assert read_token_ids(tmp_path) == {"eos_token_id": 0, "bos_token_id": 1}

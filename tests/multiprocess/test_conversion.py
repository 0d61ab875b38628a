"""Models of Hugging Face folders become checkpoints and are exported again, bit for bit, from any layout."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_ext.model.micro_batch import TokenBatch
from megatron_ext.parallel.groups import destroy_groups, initialize_groups
from megatron_ext.ponder.config import Method
from pipeline.checkpoint.loading import load_weights
from pipeline.checkpoint.offline import OfflineReader
from pipeline.checkpoint.saver import save_checkpoint
from pipeline.checkpoint.state import TrainState
from pipeline.config.load import dump_config, load_config
from pipeline.conversion.comparison import LogitMismatchError, compare_logits
from pipeline.conversion.from_hf import ImportOptions, from_hf
from pipeline.conversion.hf_weights import HuggingFaceWeights
from pipeline.conversion.prompts import draw_prompts
from pipeline.conversion.run_settings import one_process
from pipeline.conversion.to_hf import ExportOptions, to_hf
from pipeline.run.initial_weights import load_initial_weights
from pipeline.shared.errors import ConversionError
from pipeline.step.build import build_module, build_training
from tests.support.golden.case import read_cases
from tests.support.hf_models import NUM_LAYERS, VOCAB_SIZE, make_model, read_all, save_model
from tests.support.ranks import SharedRanks, run_alone

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.multiprocess

ARCHITECTURES = ("gpt_neox", "llama")
PRECISIONS = {torch.float32: "fp32", torch.float16: "fp32", torch.bfloat16: "bf16"}
TOKENIZER_FILES = {"tokenizer.json", "generation_config.json"}


def _original(folder: Path, architecture: str, **options: Any) -> tuple[Path, dict[str, Tensor]]:
    """Save a model; return its folder and its tensors with the names and dtypes of Hugging Face."""
    files = options.pop("files", "safetensors")
    model = make_model(architecture, **options)
    plain = save_model(folder / "plain", model)
    return save_model(folder / "original", model, files=files), read_all(plain)


def _assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


CASES = [
    ("gpt_neox", torch.float32, False, "safetensors"),
    ("gpt_neox", torch.float16, False, "bin"),
    ("gpt_neox", torch.bfloat16, True, "parts"),
    ("llama", torch.float32, True, "bin"),
    ("llama", torch.float16, False, "parts"),
    ("llama", torch.bfloat16, False, "safetensors"),
]


@pytest.mark.parametrize(("architecture", "dtype", "tied", "files"), CASES)
def test_import_and_export_keep_every_bit(
    tmp_path: Path, architecture: str, dtype: torch.dtype, tied: bool, files: str
) -> None:
    original, expected = _original(tmp_path, architecture, dtype=dtype, tied=tied, files=files)
    folder, certificate = from_hf(original, tmp_path / "native", ImportOptions())
    assert certificate.logits.is_within_tolerance
    assert certificate.tensors.num_read == len(expected)
    assert certificate.tensors.num_values == sum(value.numel() for value in expected.values())
    assert {name for parts in certificate.tensors.made_of.values() for name in parts} == set(expected)
    assert set(certificate.tensors.padding_rows.values()) == {128 - VOCAB_SIZE}
    config = load_config(folder / "run_config.yaml")
    assert config.training.precision == PRECISIONS[dtype]
    back = to_hf(folder, tmp_path / "back", ExportOptions(shard_bytes=30_000))
    assert back.logits.is_within_tolerance
    assert back.tensors.num_rounded == 0
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 1
    _assert_equal(read_all(tmp_path / "back"), expected)
    assert {path.name for path in (tmp_path / "back").iterdir()} >= TOKENIZER_FILES


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [False, True])
def test_transformers_computes_the_same_with_the_exported_model(
    tmp_path: Path, architecture: str, tied: bool
) -> None:
    original, _ = _original(tmp_path, architecture, tied=tied)
    folder, _ = from_hf(original, tmp_path / "native", ImportOptions())
    to_hf(folder, tmp_path / "back", ExportOptions())
    load = transformers.AutoModelForCausalLM.from_pretrained
    first, second = load(original), load(tmp_path / "back")
    tokens = draw_prompts(VOCAB_SIZE, 64)
    assert torch.equal(first(tokens).logits, second(tokens).logits)
    for name in (
        "rope_parameters",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "max_position_embeddings",
    ):
        assert getattr(first.config, name) == getattr(second.config, name), name


def _save_again(source: Path, directory: Path, tensor: int, pipeline: int) -> None:
    """Load weights onto a layout and save them from it as a run does."""
    layout = [f"parallel.tensor={tensor}", f"parallel.pipeline={pipeline}", "training.global_batch_size=8"]
    config = load_config(source / "run_config.yaml", layout)
    groups = initialize_groups(tensor=tensor, pipeline=pipeline)
    try:
        parts = build_training(config, VOCAB_SIZE, groups)
        load_weights(source, module=parts.module, groups=groups)
        parts.optimizer.reload_model_params()
        config_file = directory.with_suffix(".yaml")
        if groups.rank == 0:
            dump_config(config, config_file)
        torch.distributed.barrier()
        save_checkpoint(
            directory,
            TrainState(iteration=5, consumed_samples=0),
            module=parts.module,
            optimizer=parts.optimizer,
            scheduler=parts.scheduler,
            groups=groups,
            config_file=config_file,
        )
    finally:
        destroy_groups()


LAYOUTS = [(1, 1), (2, 1), (1, 2)]
LARGE_LAYOUTS = [pytest.param(4, 1, marks=pytest.mark.matrix), pytest.param(2, 2, marks=pytest.mark.matrix)]
ON_LAYOUTS = [
    ("gpt_neox", torch.float16, False),
    ("gpt_neox", torch.float32, True),
    ("llama", torch.bfloat16, False),
    ("llama", torch.float32, True),
]


@pytest.mark.parametrize(("tensor", "pipeline"), [*LAYOUTS, *LARGE_LAYOUTS])
def test_import_and_export_across_a_layout_keep_every_bit(
    ranks: SharedRanks, tmp_path: Path, tensor: int, pipeline: int
) -> None:
    for number, (architecture, dtype, tied) in enumerate(ON_LAYOUTS):
        if architecture == "llama" and tensor == 4:
            continue  # two key heads
        folder = tmp_path / str(number)
        original, expected = _original(folder, architecture, dtype=dtype, tied=tied)
        source, _ = from_hf(original, folder / "native", ImportOptions())
        ranks.run(_save_again, tensor * pipeline, source, folder / "again", tensor, pipeline)
        saved = folder / "again" / "iter_0000005"
        rows = OfflineReader(saved).tensors["embedding.word_embeddings.weight"].size[0]
        assert rows == 128 * tensor
        options = ExportOptions(dtype=dtype, tokenizer=original)
        certificate = to_hf(saved, folder / "back", options)
        assert certificate.tensors.num_rounded == 0
        _assert_equal(read_all(folder / "back"), expected)


def test_the_checkpoint_has_the_tensors_and_objects_that_a_run_saves(tmp_path: Path) -> None:
    original, _ = _original(tmp_path, "llama")
    converted, _ = from_hf(original, tmp_path / "native", ImportOptions(method=Method.PONDERLM3))
    run_alone(_save_again, converted, tmp_path / "again", 1, 1)
    readers = [OfflineReader(converted), OfflineReader(tmp_path / "again" / "iter_0000005")]
    sizes = [{name: entry.size for name, entry in reader.tensors.items()} for reader in readers]
    assert sizes[0] == {name: size for name, size in sizes[1].items() if not name.startswith("optimizer")}
    assert set(readers[0].objects) == {name for name in readers[1].objects if not name.startswith("rng")}


def _start(source: Path, method: str) -> dict[str, Tensor]:
    config = one_process(
        load_config(source / "run_config.yaml"),
        ponder={"method": method, "num_latent_thoughts": 2},
        init_from={"path": str(source), "method": "vanilla"},
    )
    groups = initialize_groups()
    try:
        parts = build_training(config, VOCAB_SIZE, groups)
        load_initial_weights(config, parts, groups, vocab_size=VOCAB_SIZE)
        return {name: value.detach().clone() for name, value in parts.module.named_parameters()}
    finally:
        destroy_groups()


@pytest.mark.parametrize("method", ["ponderlm2", "ponderlm3", "adaponderlm"])
def test_a_run_and_a_conversion_initialize_the_same_weights_from_a_folder(
    tmp_path: Path, method: str
) -> None:
    original, _ = _original(tmp_path, "gpt_neox", dtype=torch.float16)
    vanilla, _ = from_hf(original, tmp_path / "vanilla", ImportOptions())
    options = ImportOptions(method=Method(method), overrides=["ponder.num_latent_thoughts=2"])
    direct, certificate = from_hf(original, tmp_path / "direct", options)
    started = run_alone(_start, vanilla, method)
    written = OfflineReader(direct)
    assert set(certificate.tensors.new) == {name for name in started if name.startswith("ponder.")}
    for name, value in started.items():
        if not name.startswith("decoder."):
            assert torch.equal(written.read(name).to(value.dtype), value), name


def _golden_logits(folder: Path, tokens: Tensor) -> Tensor:
    config = load_config(folder / "run_config.yaml")
    groups = initialize_groups()
    try:
        module = build_module(config, 160, groups).eval()
        load_weights(folder, module=module, groups=groups)
        seen: dict[str, Tensor] = {}
        batch = TokenBatch(
            tokens=tokens,
            labels=torch.full_like(tokens, -100),
            position_ids=torch.arange(tokens.shape[1]).expand_as(tokens),
            document_ids=torch.zeros_like(tokens),
        )
        with torch.no_grad():
            module(
                batch,
                num_jacobi_iterations=config.ponder.num_jacobi_iterations,
                # The loss is computed in place.
                observe=lambda name, value: seen.update({name: value.clone()}),
            )
        return seen["logits"][..., :160].transpose(0, 1)
    finally:
        destroy_groups()


GOLDEN = [
    ("ours_neox_k2_j3", {}),
    ("ours_neox_k1_j1_interp", {}),
    ("ours_llama_k1_j3_eps1e-1", {}),
    ("ours_llama_k1_j1_padid1", {}),
    ("ours_llama_k1_j3_noscale", {}),
    (
        "ponderlm3_neox_k2_j2",
        {
            "method": Method.PONDERLM3,
            "overrides": ["ponder.num_latent_thoughts=2", "ponder.num_jacobi_iterations=2"],
        },
    ),
]


@pytest.mark.parametrize(("name", "options"), GOLDEN)
def test_published_ponderlm2_folders_and_routers_compute_the_recorded_logits(
    golden_folder: Path, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    case = next(case for case in read_cases(golden_folder) if case.name == name)
    source = tmp_path / "published"
    source.mkdir()
    model_type = {"neox": "gpt_neox", "llama": "llama"}[case.facts["arch"]]
    values = {**case.backbone, "model_type": model_type}
    (source / "config.json").write_text(json.dumps(values))
    save_file(case.weights(), source / "model.safetensors")
    folder, certificate = from_hf(
        source, tmp_path / "native", ImportOptions(needs_tokenizer=False, **options)
    )
    assert not certificate.tensors.new
    logits = run_alone(_golden_logits, folder, case.tensors["inputs/input_ids"])
    expected = case.tensors["outputs/logits"]
    assert (logits - expected).abs().max() <= case.tolerance("outputs/logits", double=False)


def test_different_logits_are_refused_and_leave_no_files(tmp_path: Path) -> None:
    original, _ = _original(tmp_path, "gpt_neox")
    with pytest.raises(LogitMismatchError):
        from_hf(original, tmp_path / "native", ImportOptions(tolerance=0.0))
    assert not (tmp_path / "native").exists()
    options = ImportOptions(tolerance=0.0, allow_mismatch=True)
    folder, _ = from_hf(original, tmp_path / "native", options)
    logits = json.loads((folder / "conversion.json").read_text())["logits"]
    assert logits["is_within_tolerance"] is False
    assert 0 < logits["max_error"] < 1e-4
    with pytest.raises(LogitMismatchError):
        to_hf(folder, tmp_path / "back", ExportOptions(tolerance=0.0))
    assert not (tmp_path / "back").exists()
    assert not list(tmp_path.glob("back*"))


@pytest.mark.parametrize(
    ("architecture", "change"),
    [
        ("gpt_neox", {"rotary_base": 501}),
        ("gpt_neox", {"rotary_percent": 0.25}),
        ("gpt_neox", {"norm_epsilon": 0.1}),
        ("llama", {"rotary_base": 501}),
        ("llama", {"norm_epsilon": 0.1}),
    ],
)
def test_the_comparison_detects_a_wrong_setting(
    tmp_path: Path, architecture: str, change: dict[str, Any]
) -> None:
    original, _ = _original(tmp_path, architecture)
    folder, certificate = from_hf(original, tmp_path / "native", ImportOptions())
    assert certificate.logits.top1_agreement == 1.0
    config = load_config(folder / "run_config.yaml")
    wrong = one_process(config, model=config.model.model_dump(mode="json") | change)
    weights = HuggingFaceWeights(original)
    compare_logits(weights, folder, config, tolerance=1e-5, allow_mismatch=False)
    with pytest.raises(LogitMismatchError) as error:
        compare_logits(weights, folder, wrong, tolerance=1e-5, allow_mismatch=False)
    assert error.value.comparison.is_within_tolerance is False


def test_rounding_is_counted_and_overflow_refused(tmp_path: Path) -> None:
    original, expected = _original(tmp_path, "llama")
    folder, _ = from_hf(original, tmp_path / "native", ImportOptions())
    certificate = to_hf(folder, tmp_path / "back", ExportOptions(dtype=torch.bfloat16))
    lost = sum(int((value.bfloat16().float() != value).sum()) for value in expected.values())
    assert certificate.tensors.num_rounded == lost > 0
    large = {name: value * 1e6 for name, value in load_file(original / "model.safetensors").items()}
    save_file(large, original / "model.safetensors", metadata={"format": "pt"})
    folder, _ = from_hf(original, tmp_path / "large", ImportOptions(allow_mismatch=True))
    with pytest.raises(ConversionError, match=r"torch\.float16"):
        to_hf(folder, tmp_path / "half", ExportOptions(dtype=torch.float16))
    assert not (tmp_path / "half").exists()


def test_without_transformers_the_certificate_records_that_logits_were_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original, _ = _original(tmp_path, "llama")
    monkeypatch.setattr("pipeline.conversion.comparison.find_spec", lambda name: None)
    folder, _ = from_hf(original, tmp_path / "native", ImportOptions())
    logits = json.loads((folder / "conversion.json").read_text())["logits"]
    assert (logits["compared"], logits["note"]) == (False, "transformers is not installed")
    assert [record.levelname for record in caplog.records if record.name.endswith("comparison")] == [
        "WARNING"
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reference_logits_layer_by_layer_equal_those_of_the_full_model(
    tmp_path: Path, architecture: str
) -> None:
    from pipeline.conversion.transformers_logits import backbone_logits

    original, _ = _original(tmp_path, architecture)
    model = transformers.AutoModelForCausalLM.from_pretrained(original)
    tokens = draw_prompts(VOCAB_SIZE, 64)
    assert model.config.num_hidden_layers == NUM_LAYERS
    assert torch.equal(backbone_logits(HuggingFaceWeights(original), tokens), model(tokens).logits)

"""What is refused before or while a folder is taken in, and that nothing stays then."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from megatron_ext.ponder.config import Method
from pipeline.checkpoint.folder import start_partial_checkpoint
from pipeline.cli import app
from pipeline.config.errors import ConfigError
from pipeline.conversion.from_hf import ImportOptions, from_hf
from pipeline.conversion.native import NativeReader, NativeWriter
from pipeline.shared.errors import ConversionError
from tests.bench.conversion import NeoxSizes, make_model

SIZES = NeoxSizes(num_layers=2, hidden_size=16, num_heads=2, ffn_size=32, vocab_size=24)
HEAD, EMBEDDING = "embed_out.weight", "gpt_neox.embed_in.weight"
QKV = "gpt_neox.layers.1.attention.query_key_value.weight"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    make_model(SIZES, folder, dtype=torch.float32)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    values = load_file(folder / "model.safetensors")
    change(values)
    save_file(values, folder / "model.safetensors")


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(source: Path, output: Path, **options: Any) -> str:
    with pytest.raises((ConversionError, ConfigError)) as raised:
        from_hf(source, output, ImportOptions(**options))
    assert not output.exists()
    return str(raised.value)


DAMAGES: list[tuple[Callable[[dict[str, Tensor]], Any], str]] = [
    (lambda values: values.pop(QKV), f"1 missing: {QKV}"),
    (lambda values: values.update(adapter=torch.ones(2)), "1 unexpected: adapter"),
    (
        lambda values: values.update({QKV: torch.ones(16, 48)}),
        f"{QKV} has the shape (16, 48) and not (48, 16)",
    ),
    (
        lambda values: values.update({HEAD: torch.ones(25, 16)}),
        f"{HEAD} has the shape (25, 16) and not (24, 16)",
    ),
    (
        lambda values: values.update({QKV: torch.ones(48, 16, dtype=torch.int8)}),
        "of another type than float32",
    ),
    (
        lambda values: values[QKV][3].fill_(torch.nan),
        f"{QKV} must hold finite numbers, but has 16 that are not",
    ),
    (lambda values: values[HEAD][3].fill_(torch.inf), f"{HEAD} must hold finite numbers, but has 16"),
]


@pytest.mark.parametrize(("damage", "complaint"), DAMAGES)
def test_damaged_weights_are_refused(
    source: Path, tmp_path: Path, damage: Callable[[dict[str, Tensor]], Any], complaint: str
) -> None:
    change_weights(source, damage)
    assert complaint in refusal(source, tmp_path / "out")


def test_all_misfits_are_said_at_once(source: Path, tmp_path: Path) -> None:
    def damage(values: dict[str, Tensor]) -> None:
        del values[QKV]
        values |= {"x": torch.ones(1), HEAD: torch.ones(3, 3)}

    change_weights(source, damage)
    text = refusal(source, tmp_path / "out")
    assert all(part in text for part in ("1 missing", "1 unexpected: x", "has the shape (3, 3)"))


def test_a_folder_without_tokenizer_is_refused_unless_none_is_wanted(source: Path, tmp_path: Path) -> None:
    (source / "tokenizer.json").unlink()
    assert "must hold a tokenizer" in refusal(source, tmp_path / "out")
    folder, _ = from_hf(source, tmp_path / "out", ImportOptions(needs_tokenizer=False))
    assert folder.is_dir()


def test_a_head_beside_a_tied_embedding_must_equal_it(source: Path, tmp_path: Path) -> None:
    change_config(source, tie_word_embeddings=True)
    assert f"{HEAD} must equal {EMBEDDING}" in refusal(source, tmp_path / "out")
    change_weights(source, lambda values: values.update({HEAD: values[EMBEDDING].clone()}))
    _, certificate = from_hf(source, tmp_path / "out", ImportOptions())
    assert certificate.tensors.tied_copies == [HEAD]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"overrides": ["model.rotary_base=5"]}, "model.rotary_base is 10000 there and 5 in --set"),
        ({"overrides": ["ponder.nonsense=5"]}, "must be a known setting"),
        ({"method": Method.PAUSE}, "ponder.pause_token_id"),
        ({"ignored": ["nothing"]}, "it has no nothing"),
    ],
)
def test_settings_that_contradict_the_source_are_refused(
    source: Path, tmp_path: Path, options: dict[str, Any], complaint: str
) -> None:
    assert complaint in refusal(source, tmp_path / "out", **options)


def test_a_method_that_cannot_start_from_the_source_is_refused(source: Path, tmp_path: Path) -> None:
    change_config(
        source,
        recurrent_model=True,
        num_latent_thoughts=1,
        num_jacobi_iterations=2,
        random_jacobi_iterations=False,
        interpolation=False,
        scale_embeds=True,
    )
    text = refusal(source, tmp_path / "out", method=Method.ADAPONDERLM)
    assert "--method" in text
    assert "which starts from vanilla, ponderlm" in text


def test_a_folder_with_content_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(ConversionError, match="must be an empty or absent folder"):
        from_hf(source, tmp_path / "out", ImportOptions())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_an_empty_folder_stays_empty_after_a_refusal(source: Path, tmp_path: Path) -> None:
    change_weights(source, lambda values: values[QKV].fill_(torch.nan))
    (tmp_path / "out").mkdir()
    with pytest.raises(ConversionError):
        from_hf(source, tmp_path / "out", ImportOptions())
    assert list((tmp_path / "out").iterdir()) == []


def test_pause_tokens_take_a_row_of_the_source(source: Path, tmp_path: Path) -> None:
    options = ImportOptions(method=Method.PAUSE, overrides=["ponder.pause_token_id=23"])
    _, certificate = from_hf(source, tmp_path / "out", options)
    assert not certificate.tensors.new


def test_the_command_writes_a_checkpoint_that_verifies_and_its_errors_are_no_crash(
    source: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    result = CliRunner().invoke(app, ["convert", "from-hf", str(source), "--output", str(output)])
    assert result.exit_code == 0, result.output
    assert f"written to {output / 'iter_0000000'}" in result.stdout
    assert CliRunner().invoke(app, ["checkpoint", "verify", str(output)]).exit_code == 0
    certificate = json.loads((output / "iter_0000000" / "conversion.json").read_text())
    assert set(certificate["source_files"]) == {"config.json", "model.safetensors", "tokenizer.json"}
    assert certificate["tensors"]["num_read"] == len(load_file(source / "model.safetensors"))
    assert (output / "tokenizer" / "tokenizer.json").is_file()
    back = tmp_path / "back"
    result = CliRunner().invoke(app, ["convert", "to-hf", str(output), "--output", str(back)])
    assert result.exit_code == 0, result.output
    expected = load_file(source / "model.safetensors")
    found = load_file(back / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    result = CliRunner().invoke(app, ["convert", "to-hf", str(output), "--output", str(back)])
    assert isinstance(result.exception, ConversionError)


def test_a_parameter_is_written_in_pieces_and_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.conversion.native._PIECE_BYTES", 40)
    values = torch.arange(35.0).reshape(7, 5)
    folder = start_partial_checkpoint(tmp_path, 0)
    with NativeWriter(folder, num_layers=2, total_bytes=280) as writer:
        for layer in range(2):
            writer.write(f"decoder.layers.{layer}.x.weight", values + layer)
        writer.write("final_norm.weight", values[0])
    reader = NativeReader(folder)
    assert len(reader.reader.tensors["decoder.layers.x.weight"].chunks) == 8
    assert torch.equal(reader.read("decoder.layers.1.x.weight"), values + 1)
    assert torch.equal(reader.read("decoder.layers.1.x.weight", rows=3), values[:3] + 1)
    assert torch.equal(reader.read("final_norm.weight"), values[0])
    with pytest.raises(ConversionError, match=r"must hold decoder\.layers\.2\.x\.weight"):
        reader.read("decoder.layers.2.x.weight")

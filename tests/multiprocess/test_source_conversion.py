"""A run converts the Hugging Face folder that it starts from: once, completely, and only if models match."""

import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.checkpoint.offline import OfflineReader
from pipeline.config.load import build_config
from pipeline.config.schema import RunConfig
from pipeline.conversion.hf_config import read_source
from pipeline.ranks.signals import StopFlag
from pipeline.run.source_conversion import StoppedConvertingError, converted_source, refuse_other_model
from pipeline.shared.errors import ConversionError
from tests.bench.conversion import NeoxSizes, make_model
from tests.support.ranks import SharedRanks, run_alone

pytestmark = pytest.mark.multiprocess

VOCAB_SIZE = 50
SIZES = NeoxSizes(num_layers=2, hidden_size=32, num_heads=2, ffn_size=64, vocab_size=VOCAB_SIZE)
MODEL = {
    "architecture": "gpt_neox",
    "num_layers": 2,
    "hidden_size": 32,
    "ffn_hidden_size": 64,
    "num_attention_heads": 2,
}


def _config(source: Path, output: Path, **sections: dict[str, Any]) -> RunConfig:
    settings: dict[str, Any] = {
        "output_dir": str(output),
        "model": MODEL,
        "ponder": {"method": "ponderlm3", "scale_embeds": False},
        "training": {"seq_length": 32, "micro_batch_size": 1, "global_batch_size": 1, "train_iters": 1},
        "optimizer": {"lr": 1e-3},
        "data": {"path": "nowhere"},
        "init_from": {"path": str(source), "format": "hf", "method": "vanilla", "ignore": ["strange"]},
    }
    changed = {name: settings[name] | section for name, section in sections.items()}
    return build_config(settings | changed)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "hf"
    make_model(SIZES, folder, dtype=torch.float16, shard_bytes=20_000)
    values = {**json.loads((folder / "config.json").read_text()), "strange": 1}
    (folder / "config.json").write_text(json.dumps(values))
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def _convert(config: RunConfig) -> Path:
    return converted_source(config, vocab_size=VOCAB_SIZE, stop=StopFlag())


def test_the_first_rank_converts_and_later_starts_find_it_done(
    ranks: SharedRanks, source: Path, tmp_path: Path
) -> None:
    config = _config(source, tmp_path / "run")
    leftover = tmp_path / "run" / "init_from.partial"
    leftover.mkdir(parents=True)
    (leftover / "iter_0000000").mkdir()

    found = ranks.run(_convert, 2, config)

    assert found == [tmp_path / "run" / "init_from"] * 2
    assert not leftover.exists()
    folder = found[0] / "iter_0000000"
    certificate = json.loads((folder / "conversion.json").read_text())
    assert certificate["logits"]["is_within_tolerance"]
    assert certificate["source"] == str(source)
    assert certificate["ignored_settings"] == ["strange"]
    assert OfflineReader(folder).tensors["embedding.word_embeddings.weight"].size == (128, 32)

    before = (folder / "conversion.json").stat().st_mtime_ns
    assert run_alone(_convert, config) == found[0]
    assert (folder / "conversion.json").stat().st_mtime_ns == before

    other = _config(tmp_path / "another", tmp_path / "run")
    with pytest.raises(ConversionError, match=str(tmp_path / "another")):
        run_alone(_convert, other)


def test_a_damaged_source_is_the_same_error_on_every_rank_and_leaves_only_the_log(
    ranks: SharedRanks, source: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    make_model(SIZES, damaged, dtype=torch.float16)
    content = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(content[:-2] + b"\xff\x7f")

    complaints = ranks.run(_complaint, 2, _config(damaged, tmp_path / "run", init_from={"ignore": []}))

    assert complaints[0] == complaints[1]
    assert re.match(r"embed_out\.weight .* 1 non-finite", complaints[0])
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["init_from.log"]


def _complaint(config: RunConfig) -> str:
    try:
        _convert(config)
    except ConversionError as error:
        return str(error)
    return ""


def test_a_source_of_impossible_sizes_is_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": VOCAB_SIZE}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 3}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **sizes, **heads}))

    with pytest.raises(ConversionError, match=r"config\.json[\s\S]*num_query_groups"):
        run_alone(_convert, _config(tmp_path, tmp_path / "run", init_from={"ignore": []}))


def test_a_stop_signal_and_a_time_limit_end_the_conversion(source: Path, tmp_path: Path) -> None:
    config = _config(source, tmp_path / "run", init_from={"convert_timeout_seconds": 1})
    started = time.monotonic()
    with pytest.raises(StoppedConvertingError):
        run_alone(_convert_after_a_stop_signal, config)
    with pytest.raises(ConversionError, match=r"init_from\.convert_timeout_seconds \(1"):
        run_alone(_convert, config)

    assert time.monotonic() - started < 20
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["init_from.log"]


def _convert_after_a_stop_signal(config: RunConfig) -> Path:
    stop = StopFlag()
    stop.received = signal.SIGTERM
    return converted_source(config, vocab_size=VOCAB_SIZE, stop=stop)


def test_all_differences_from_the_source_are_reported_together(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"\bstrange\b"):
        read_source(source)
    model = read_source(source, ignored=["strange"])
    refuse_other_model(_config(source, tmp_path), model, vocab_size=VOCAB_SIZE)
    changes = {"num_layers": 3, "rotary_base": 500, "untie_embeddings_and_output_weights": False}
    config = _config(source, tmp_path, model=changes, init_from={"method": "ponderlm2"})

    with pytest.raises(ConversionError) as raised:
        refuse_other_model(config, model, vocab_size=200)

    for pattern in (
        r"model\.num_layers .*\b3\b.*\b2\b",
        r"model\.rotary_base .*\b500\b.*\b10000\b",
        r"model\.untie_embeddings_and_output_weights .*False.*True",
        r"init_from\.method .*ponderlm2.*vanilla",
        r"\b200\b.*\b256\b.*\b50\b.*\b128\b",
    ):
        assert re.search(pattern, str(raised.value)), pattern

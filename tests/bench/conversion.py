"""Time and peak memory of a conversion there and back, of a Pythia-shaped model with random weights."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_ext.weights import entries
from pipeline.conversion.certificate import CERTIFICATE_NAME
from pipeline.conversion.hf_config import CONFIG_JSON, parse_source
from pipeline.conversion.hf_weights import INDEX_SUFFIX, SAFETENSORS_NAME
from pipeline.conversion.hf_weights_writing import SafetensorsWriter, plan_shards
from pipeline.conversion.run_settings import converted_model, run_settings
from pipeline.conversion.shapes import expected_shape

# Standard deviation of the weights.
_STD = 0.02
# Maximum size of a file of weights.
SHARD_BYTES = 2 * 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class NeoxSizes:
    """Sizes of a GPT-NeoX model, by default those of Pythia-2.8B."""

    num_layers: int = 32
    hidden_size: int = 2560
    num_heads: int = 32
    ffn_size: int = 10240
    vocab_size: int = 50304


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionCost:
    """Cost of one conversion.

    Attributes:
        direction: ``from-hf`` or ``to-hf``.
        seconds: of the process.
        cpu_seconds: of all its threads; less affected by other work on the machine.
        peak_bytes: largest resident memory, mapped pages of files included.
        num_values: number of values converted.
        max_error: largest difference of logits; None if they were not compared.
    """

    direction: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    num_values: int
    max_error: float | None


def measure_conversion(sizes: NeoxSizes, folder: Path, *, dtype: torch.dtype) -> list[ConversionCost]:
    """Make a model and convert it there and back, each in a separate process.

    Args:
        sizes: of the model.
        folder: empty; needs room for three times the model.
        dtype: of the weights.
    Raises:
        subprocess.CalledProcessError: a conversion failed; its message is on standard error.
    """
    make_model(sizes, folder / "hf", dtype=dtype)
    native, back = folder / "native", folder / "back"
    return [
        _run("from-hf", folder / "hf", native, native / "iter_0000000" / CERTIFICATE_NAME),
        _run("to-hf", native, back, back / CERTIFICATE_NAME),
    ]


def make_model(sizes: NeoxSizes, folder: Path, *, dtype: torch.dtype, shard_bytes: int = SHARD_BYTES) -> None:
    """Write a model with random weights, tensor by tensor; at most one tensor is in memory.

    Args:
        sizes: of the model.
        folder: must not exist.
        dtype: of the weights.
        shard_bytes: maximum size of a file; several files have an index.
    """
    values = hf_settings(sizes, dtype=dtype)
    folder.mkdir(parents=True)
    (folder / CONFIG_JSON).write_text(json.dumps(values, indent=2), encoding="utf-8")
    config = run_settings(
        parse_source(values, origin=CONFIG_JSON), method=None, overrides=(), precision="fp32"
    )
    model = converted_model(config, sizes.vocab_size)
    shapes = {name: expected_shape(name, model) for entry in entries(model) for name in entry.sources}
    shards = plan_shards(shapes, itemsize=dtype.itemsize, shard_bytes=shard_bytes)
    generator = torch.Generator().manual_seed(1)
    for file, names in shards.items():
        writer = SafetensorsWriter(folder / file, {name: shapes[name] for name in names}, dtype)
        for name in names:
            tensor = torch.randn(shapes[name], generator=generator).mul_(_STD)
            is_norm = "norm" in name and name.endswith("weight")
            writer.write(name, tensor.add_(1) if is_norm else tensor)
        writer.close()
    if len(shards) > 1:
        index = {
            "metadata": {},
            "weight_map": {name: file for file, names in shards.items() for name in names},
        }
        (folder / f"{SAFETENSORS_NAME}{INDEX_SUFFIX}").write_text(json.dumps(index), encoding="utf-8")


def hf_settings(sizes: NeoxSizes, *, dtype: torch.dtype) -> dict[str, Any]:
    """Return a config.json like that of published Pythia models (EleutherAI/pythia-2.8b)."""
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "bos_token_id": 0,
        "eos_token_id": 0,
        "hidden_act": "gelu",
        "hidden_size": sizes.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": sizes.ffn_size,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "model_type": "gpt_neox",
        "num_attention_heads": sizes.num_heads,
        "num_hidden_layers": sizes.num_layers,
        "rotary_emb_base": 10000,
        "rotary_pct": 0.25,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "transformers_version": "4.24.0",
        "use_cache": True,
        "use_parallel_residual": True,
        "vocab_size": sizes.vocab_size,
    }


def _run(direction: str, source: Path, output: Path, certificate: Path) -> ConversionCost:
    command = [sys.executable, "-m", "pipeline.cli", "convert", direction, str(source)]
    started = time.monotonic()
    usage = _resources_of([*command, "--output", str(output), "--no-tokenizer"])
    seconds = time.monotonic() - started
    certified: dict[str, Any] = json.loads(certificate.read_text(encoding="utf-8"))
    return ConversionCost(
        direction=direction,
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        # Linux counts in KiB.
        peak_bytes=usage.ru_maxrss * 1024,
        num_values=certified["tensors"]["num_values"],
        max_error=certified["logits"]["max_error"],
    )


def _resources_of(command: Sequence[str]) -> resource.struct_rusage:
    """Run a command and return its resource usage."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, list(command))
    return usage

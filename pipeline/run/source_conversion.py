"""Convert the Hugging Face folder that a run starts from (`init_from.format: hf`), once, before it trains.

Rank 0 converts it in a separate process, which leaves the memory and the devices of the ranks alone and ends
at once on a signal. The result is renamed when it is complete::

    <output_dir>/init_from.partial/   being converted, or left by an interrupted start
    <output_dir>/init_from/           the checkpoint with its certificate, reused by every later start
    <output_dir>/init_from.log        output of the conversion
"""

import logging
import os
import shutil
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import torch.distributed

from megatron_ext.device import HOST_BACKEND
from pipeline.checkpoint.folder import CONVERTED_SOURCE
from pipeline.config.errors import ConfigError
from pipeline.config.schema import RunConfig
from pipeline.conversion.certificate import read_certificate
from pipeline.conversion.hf_config import CONFIG_JSON, SourceModel, read_source
from pipeline.conversion.run_settings import run_settings
from pipeline.conversion.tokenizer_files import main_file
from pipeline.ranks.process import die_with_parent
from pipeline.ranks.signals import StopFlag, StopRequest
from pipeline.run.initial_weights import model_differences
from pipeline.shared.bounded import wait_until
from pipeline.shared.errors import ConversionError
from pipeline.shared.files import publish
from pipeline.shared.python_start import python_module, python_variables

logger = logging.getLogger(__name__)

_ITERATION_FOLDER = "iter_0000000"
_POLL_SECONDS = 0.2
# How much longer the other ranks wait, for rank 0 to end the conversion and report to them.
_GRACE_SECONDS = 120
# Variables that would make the conversion take itself for one of the ranks.
_OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SHOWN_LINES = 20


class StoppedConvertingError(RuntimeError):
    """A stop signal was received while the source was being converted."""


def converted_source(config: RunConfig, *, vocab_size: int, stop: StopFlag) -> Path:
    """Return the folder of the converted source, which is converted now unless an earlier start did.

    All ranks call it together.

    Args:
        config: the run, with `init_from.path` and `init_from.format: hf`.
        vocab_size: tokens of the run's tokenizer.
        stop: of this rank; a signal to rank 0 ends the conversion.
    Raises:
        ConversionError: on all ranks, if this run cannot start from the source, or it could not be converted.
        StoppedConvertingError: on all ranks, after a signal.
    """
    limit = config.init_from.convert_timeout_seconds
    # A group of its own: ranks wait longer here than any collective of training may take.
    group = torch.distributed.new_group(
        backend=HOST_BACKEND, timeout=timedelta(seconds=limit + _GRACE_SECONDS)
    )
    outcome: list[Any] = [None]
    if torch.distributed.get_rank() == 0:
        outcome = [_failure(config, vocab_size, stop)]
    torch.distributed.broadcast_object_list(outcome, src=0, group=group)
    torch.distributed.destroy_process_group(group)
    if outcome[0] is not None:
        raise outcome[0]
    return config.output_dir / CONVERTED_SOURCE


def _failure(config: RunConfig, vocab_size: int, stop: StopFlag) -> Exception | None:
    """Convert the source; return the error that prevents it."""
    try:
        _ensure_converted(config, vocab_size, stop)
    except (ConversionError, StoppedConvertingError) as error:
        return error
    except ConfigError as error:
        # The sizes in the source make no valid model of ours.
        return ConversionError(f"{_source_path(config) / CONFIG_JSON} must describe a model, but: {error}")
    except OSError as error:
        return ConversionError(
            f"{config.output_dir / CONVERTED_SOURCE} must be writable for the converted weights, but is not "
            f"({error})"
        )
    return None


def _ensure_converted(config: RunConfig, vocab_size: int, stop: StopFlag) -> None:
    source, folder = _source_path(config), config.output_dir / CONVERTED_SOURCE
    if folder.exists():
        _refuse_other_source(source, folder)
        logger.info("%s was converted by an earlier start; using the weights in %s", source, folder)
        return
    model = read_source(source, ignored=config.init_from.ignore)
    refuse_other_model(config, model, vocab_size=vocab_size)
    partial = folder.with_name(f"{CONVERTED_SOURCE}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    logger.info("converting %s; progress is in %s.log", source, folder)
    started = time.monotonic()
    _convert(config, partial, folder.with_name(f"{CONVERTED_SOURCE}.log"), stop)
    publish(partial, folder)
    _report_conversion(source, folder, seconds=time.monotonic() - started)


def refuse_other_model(config: RunConfig, source: SourceModel, *, vocab_size: int) -> None:
    """Check that a run has the model of its source.

    Args:
        config: the run.
        source: what the source's config.json says.
        vocab_size: tokens of the run's tokenizer.
    Raises:
        ConversionError: lists every difference.
    """
    theirs = run_settings(source, method=None, overrides=(), precision="fp32")
    differences = model_differences(config, theirs)
    if config.init_from.method != source.method:
        differences.insert(0, f"init_from.method is {config.init_from.method} here and {source.method} there")
    rows, expected = (theirs.padded_vocab_size(size) for size in (source.model["vocab_size"], vocab_size))
    if rows != expected:
        differences.append(
            f"the vocabulary has {vocab_size} tokens here ({expected} rows with padding) and "
            f"{source.model['vocab_size']} there ({rows})"
        )
    if differences:
        raise ConversionError(
            f"{_source_path(config) / CONFIG_JSON} must describe this run's model, but "
            f"{'; '.join(differences)}; set them as they are there, or start from another model"
        )


def _source_path(config: RunConfig) -> Path:
    assert config.init_from.path is not None, "without a path there is nothing to convert"
    return config.init_from.path


def _refuse_other_source(source: Path, folder: Path) -> None:
    """Check that the source was not changed since it was converted by an earlier start."""
    certified = read_certificate(folder / _ITERATION_FOLDER)
    if certified["source"] != str(source.resolve()):
        raise ConversionError(
            f"{folder} must hold the weights of {source.resolve()}, but was converted from "
            f"{certified['source']}; remove it, or train into another output_dir"
        )
    changed = [
        name
        for name, digest in certified["source_files"].items()
        if (source / name).is_file() and (source / name).stat().st_size != digest["bytes"]
    ]
    if changed:
        raise ConversionError(
            f"{folder} must hold the weights of {source}, but {', '.join(changed)} there have changed since; "
            f"remove {folder}, or train into another output_dir"
        )


def _convert(config: RunConfig, partial: Path, log: Path, stop: StopFlag) -> None:
    source = _source_path(config)
    command = [sys.executable, *python_module("pipeline.cli"), "convert", "from-hf", str(source)]
    command += ["--output", str(partial)]
    command += [part for key in config.init_from.ignore for part in ("--ignore", key)]
    command += [] if main_file(source) else ["--no-tokenizer"]
    variables = {name: value for name, value in os.environ.items() if name not in _OF_RANKS}
    with log.open("w+b") as output:
        process = subprocess.Popen(
            command,
            # The devices belong to the ranks.
            env=variables | python_variables(variables) | {"CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=die_with_parent(os.getpid()),
        )
        try:
            code = _wait(process, stop, limit_seconds=config.init_from.convert_timeout_seconds)
        finally:
            process.kill()
            process.wait()
            if process.returncode != 0:
                shutil.rmtree(partial, ignore_errors=True)
        if code != 0:
            raise ConversionError(_reason(output) or f"the conversion ended with exit code {code}; see {log}")


def _wait(process: subprocess.Popen[bytes], stop: StopFlag, *, limit_seconds: int) -> int:
    def has_ended() -> bool:
        if stop.requested is StopRequest.SIGNAL:
            raise StoppedConvertingError("stop signal received while init_from.path was being converted")
        return process.poll() is not None

    if not wait_until(has_ended, seconds=limit_seconds, poll_seconds=_POLL_SECONDS):
        raise ConversionError(
            f"init_from.path must be converted within init_from.convert_timeout_seconds ({limit_seconds}"
            "), but is not; raise it, or convert with `megaponder convert from-hf` before the run"
        )
    return process.returncode


def _reason(output: IO[bytes]) -> str:
    """Return the error that the conversion reported, or the end of its output."""
    output.seek(0)
    text = output.read().decode(errors="replace")
    _, mark, error = text.rpartition("error: ")
    return error.strip() if mark else "\n".join(text.splitlines()[-_SHOWN_LINES:])


def _report_conversion(source: Path, folder: Path, *, seconds: float) -> None:
    certified = read_certificate(folder / _ITERATION_FOLDER)
    tensors, logits = certified["tensors"], certified["logits"]
    logger.info(
        "converted %s into %s in %.0f s: %d tensors, %d values",
        source,
        folder,
        seconds,
        tensors["num_read"],
        tensors["num_values"],
    )
    if logits["compared"]:
        logger.info(
            "logits differ from transformers' by %.1e at most, at a root mean square of %.1e",
            logits["max_error"],
            logits["logit_rms"],
        )
    else:
        logger.warning("LOGITS WERE NOT COMPARED: %s", logits["note"])

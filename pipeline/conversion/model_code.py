"""The code that an exported pondering model ships, so that transformers can run it without this program.

The modules are those of this program. They stand in one folder there, so their imports of each other become
relative; transformers follows such imports when it loads a model with ``trust_remote_code=True``.
"""

import re
from pathlib import Path

import megatron_ext.ponder

_MODEL = Path(__file__).parent / "hf_model"
_PONDER = Path(megatron_ext.ponder.__path__[0])
_MODULES = (
    *(_MODEL / name for name in ("configuration_megaponder.py", "modeling_megaponder.py")),
    *(
        _PONDER / name
        for name in (
            "attention.py",
            "documents.py",
            "halting.py",
            "renewal.py",
            "decode/sweeps.py",
            "decode/think.py",
        )
    ),
)
CODE_FILES = tuple(module.name for module in _MODULES)
_OWN_IMPORT = re.compile(r"^from megatron_ext\.ponder\.(?:decode\.)?(\w+) import", flags=re.MULTILINE)


def shipped_code() -> dict[str, str]:
    """Return the sources that an export ships, by file name."""
    return {
        module.name: _OWN_IMPORT.sub(r"from .\1 import", module.read_text(encoding="utf-8"))
        for module in _MODULES
    }


def write_code(folder: Path) -> None:
    """Write the sources into the folder of an exported model."""
    for name, source in shipped_code().items():
        (folder / name).write_text(source, encoding="utf-8")

"""Which steps of the demo are done, and for which input."""

import hashlib
import importlib.util
import json
from pathlib import Path

from pipeline.shared.files import write_atomically

# Packages whose sources decide what a training run computes.
COMPUTING_PACKAGES = ("megatron_ext", "pipeline", "data_prep")


class DemoLedger:
    """A small file that holds, for each finished step, the fingerprint of what it was made from."""

    def __init__(self, path: Path) -> None:
        """Read ``path``; a missing file is an empty ledger."""
        self._path = path
        self._keys: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}

    def is_done(self, step: str, key: str, outputs: tuple[Path, ...]) -> bool:
        """Tell whether the step was finished for this very input and what it made is still there."""
        return self._keys.get(step) == key and all(output.exists() for output in outputs)

    def was_started(self, step: str, key: str) -> bool:
        """Tell whether the step was begun for this very input, so that it may go on where it stopped."""
        return self._keys.get(f"{step}, begun") == key

    def knows(self, step: str) -> bool:
        """Tell whether the step was ever begun."""
        return f"{step}, begun" in self._keys

    def start(self, step: str, key: str) -> None:
        """Note that the step begins; until it is finished it is not done."""
        self._keys.pop(step, None)
        self._keys[f"{step}, begun"] = key
        self._save()

    def finish(self, step: str, key: str) -> None:
        """Note that the step is done."""
        self._keys[step] = key
        self._save()

    def _save(self) -> None:
        write_atomically(self._path, json.dumps(self._keys, indent=1).encode() + b"\n")


def fingerprint(*parts: str) -> str:
    """Return one hash over several texts; how they are split matters."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()


def program_fingerprint() -> str:
    """Return a hash over the sources that a run is computed with."""
    parts: list[str] = []
    for package in COMPUTING_PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None, f"package {package} is part of this distribution"
        for folder in spec.submodule_search_locations or ():
            for path in sorted(Path(folder).rglob("*.py")):
                parts += [f"{package}/{path.relative_to(folder)}", path.read_text(encoding="utf-8")]
    return fingerprint(*parts)

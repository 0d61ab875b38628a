"""The edits of `docs/adding-a-method.md`, and nothing else, make a ninth method that all commands know."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.hf_models import use_module_cache
from tests.support.runs import losses, one_rank, written_events

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "adding-a-method.md"
PACKAGES = ("pipeline", "megatron_ext", "cluster", "data_prep")
MOST_PLACES = 5
METHOD = "mean_loop"
# What the recipe of the other tests says about halting and sweeps does not belong to this method.
SETTINGS = (
    f"ponder.method={METHOD}",
    *(
        f"ponder.{name}=null"
        for name in ("num_jacobi_iterations", "pruning_threshold", "penalty_weight", "penalty_ramp")
    ),
)


def places() -> dict[str, str]:
    """Return the text of the page below each heading that names a file."""
    parts = re.split(r"^### \d+\. `([^`]+)`.*\n", PAGE.read_text(encoding="ascii"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def apply_page(root: Path) -> None:
    """Make the edits of the page in a copy of the sources."""
    for name, text in places().items():
        file = root / name
        for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            if language == "python":
                assert not file.exists(), f"{name} is shown as a new file"
                file.write_text(block, encoding="ascii")
            else:
                assert language == "diff"
                file.write_text(patched(file.read_text(encoding="ascii"), block), encoding="ascii")


def patched(source: str, diff: str) -> str:
    lines = diff.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] in " -")
    after = "".join(line[1:] for line in lines if line[0] in " +")
    assert source.count(before) == 1, f"must be found once:\n{before}"
    return source.replace(before, after)


def run_in(root: Path, *arguments: str) -> str:
    """Run `python <arguments>` on the sources in a folder; return its output."""
    finished = subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def megaponder_in(root: Path, *arguments: str) -> str:
    return run_in(root, "-m", "pipeline.cli", *arguments)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages with the edits of the page, and the tests beside it."""
    root = tmp_path_factory.mktemp("sources")
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "tests").symlink_to(REPOSITORY / "tests")
    apply_page(root)
    return root


@pytest.fixture(scope="module")
def run(sources: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the new method, trained to its end."""
    folder = tmp_path_factory.mktemp("ninth") / "run"
    megaponder_in(sources, "train", "--config", str(recipe), *one_rank(folder, *SETTINGS))
    return folder


def test_a_method_takes_few_places_and_shows_all_of_them() -> None:
    assert 0 < len(places()) <= MOST_PLACES
    assert all("```" in text for text in places().values())


def test_its_cached_decoding_equals_its_forward_and_a_step_costs_what_torch_counts(sources: Path) -> None:
    run_in(sources, "-m", "tests.support.method_checks", METHOD)


def test_its_loss_falls(run: Path) -> None:
    found = losses(run)

    assert found[max(found)] < found[1] - 0.3
    assert all(row["ponder/flops-per-token-train"] > 0 for row in written_events(run))


def test_it_is_planned(sources: Path, recipe: Path, run: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"

    megaponder_in(
        sources, "plan", "--config", str(recipe), "--json", str(file), *one_rank(tmp_path / "run", *SETTINGS)
    )

    plan = json.loads(file.read_text())
    assert plan["passes"] == 3
    assert len(plan["stages"][0]["activations_bytes_by_pass"]) <= 3
    (flops,) = {row["ponder/flops-per-token-train"] for row in written_events(run)}
    assert plan["training_flops_per_token"] == flops


def test_its_trained_weights_are_decoded_as_they_were_trained(
    sources: Path, run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "verification.json"

    megaponder_in(
        sources, "verify", str(run / "checkpoints"), "--rows", "2", "--tokens", "16", "--output", str(file)
    )

    assert file.is_file()


def test_its_export_gives_the_same_logits_with_transformers_alone(
    sources: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    use_module_cache(monkeypatch, tmp_path / "code")
    folder = tmp_path / "exported"

    # Compares the forward and cached decoding of the folder with those of the checkpoint.
    megaponder_in(sources, "convert", "to-hf", str(run / "checkpoints"), "--output", str(folder))

    logits = json.loads((folder / "conversion.json").read_text())["logits"]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokens = torch.tensor([[5, 6, 7, 8]])
    forward, cached = model(tokens).logits, model(tokens, use_cache=True).logits
    torch.testing.assert_close(cached, forward, rtol=0, atol=1e-4)
    assert model.config.method == METHOD
    assert logits

"""Golden vectors of all methods, forward, gradients and decoding, on the device."""

import json
from pathlib import Path

from megatron_ext.ponder.config import Method
from pipeline.shared.exit_codes import ExitCode
from scripts.gpu_check.place import Findings, Place
from tests.support.golden.command import run_golden

FOLDER = Path(__file__).parents[2] / "tests" / "golden"


def run(place: Place) -> Findings:
    """Compute every vector; in tiny those of one method."""
    file = place.folder / "golden.json"
    code = run_golden(FOLDER, method=place.choose(None, Method.PAUSE), json_file=file)
    results = json.loads(file.read_text(encoding="utf-8"))
    ran = [result for result in results if result["worst"]]
    failed = [result["name"] for result in results if result["status"] == "failed"]
    worst = max((value for result in ran for value in result["worst"].values()), default=0.0)
    found = Findings(
        figures={"num_cases": len(ran), "failed": failed, "largest_ratio": worst},
        summary=f"{len(ran) - len(failed)} of {len(ran)} pass; largest error {worst:.2f} of its tolerance",
    )
    found.expect(code is ExitCode.DONE, f"golden vectors ended with {code}: {', '.join(failed)}")
    return found

"""Which method a model has is asked in few places: everything else reads the table of facts."""

import re
from pathlib import Path

from megatron_ext.ponder.config import FACTS, Method

REPOSITORY = Path(__file__).parent.parent
PACKAGES = ("megatron_ext", "pipeline", "data_prep", "cluster")

# Files that may name a single method.
ALLOWED = {
    "megatron_ext/methods/registry.py": "from a method to its class",
    "megatron_ext/ponder/config.py": "the table itself",
    "megatron_ext/ponder/reference/method.py": "the oracle shares nothing with what it checks",
    "megatron_ext/ponder/reference/sequential.py": "the oracle shares nothing with what it checks",
    "pipeline/conversion/hf_method.py": "which methods the flags of published code stand for",
}


def test_single_methods_are_named_only_where_they_may_be() -> None:
    naming = {
        str(file.relative_to(REPOSITORY))
        for package in PACKAGES
        for file in (REPOSITORY / package).rglob("*.py")
        if re.search(r"\bMethod\.[A-Z]", file.read_text(encoding="utf-8"))
    }

    assert naming == ALLOWED.keys()


def test_every_method_has_its_facts() -> None:
    assert list(FACTS) == list(Method)


def test_facts_of_one_method_agree() -> None:
    for method, facts in FACTS.items():
        assert facts.halts == ("pruning_threshold" in facts.settings), method
        assert facts.has_sweeps == ("num_jacobi_iterations" in facts.settings), method
        assert facts.has_sweeps == (facts.plan(2, 3) != facts.plan(2, 0)), method
        assert facts.has_slots == (max(facts.plan(2, 0).slots) > 1), method
        assert not (facts.weighs_slots and facts.freezes_halted), method
        assert bool(facts.description) == facts.ponders, method

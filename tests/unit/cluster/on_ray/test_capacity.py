"""What is said of a cluster that has no room."""

import pytest

from cluster.job_spec import Resources
from cluster.on_ray.capacity import node_resources, render_missing_capacity

ASKED = Resources(nodes=2, ranks_per_node=8, gpus_per_node=8, cpus_per_rank=4, memory_per_node="64G")


def test_the_resources_of_all_ranks_of_a_machine_are_requested_together() -> None:
    assert node_resources(ASKED) == {"CPU": 32.0, "GPU": 8.0, "memory": 64.0 * 2**30}
    assert node_resources(Resources()) == {"CPU": 1.0}


@pytest.mark.parametrize(
    ("second", "cure"),
    [
        ({"CPU": 64.0, "GPU": 4.0, "memory": 2.0**40}, "1 of 2"),
        ({"CPU": 64.0, "GPU": 8.0, "memory": 2.0**40}, "the machines are large enough"),
    ],
)
def test_missing_capacity_lists_the_request_and_every_machine(second: dict[str, float], cure: str) -> None:
    machines = [("b", second), ("a", {"CPU": 64.0, "GPU": 8.0, "memory": 2.0**40, "node:a": 1.0})]
    lines = render_missing_capacity(node_resources(ASKED), ASKED.nodes, machines).splitlines()
    assert lines[:3] == [
        "requested: 2 machine(s), each with 32 CPU, 8 GPU, 64.0 GiB",
        "available: a with 64 CPU, 8 GPU, 1024.0 GiB",
        f"available: b with 64 CPU, {second['GPU']:g} GPU, 1024.0 GiB",
    ]
    assert lines[3].startswith(cure)


def test_machines_of_one_name_are_all_listed() -> None:
    lines = render_missing_capacity({"CPU": 1.0}, 3, [("a", {"CPU": 1.0}), ("a", {"CPU": 1.0})]).splitlines()
    assert lines[1:3] == ["available: a with 1 CPU"] * 2

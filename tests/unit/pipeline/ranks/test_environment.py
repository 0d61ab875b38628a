import pytest

from pipeline.ranks.environment import START_TIMEOUT_VARIABLE, Ranks, threads_given

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
}


def test_torchruns_variables_are_read() -> None:
    ranks = Ranks.from_environment(TORCHRUN)
    assert (ranks.rank, ranks.world_size, ranks.local_rank) == (3, 4, 1)
    assert (ranks.master_address, ranks.master_port, ranks.is_launched) == ("node0", 29500, True)


def test_without_them_this_is_the_only_rank() -> None:
    ranks = Ranks.from_environment({})
    assert (ranks.rank, ranks.world_size, ranks.local_rank, ranks.is_launched) == (0, 1, 0, False)
    assert ranks.master_address == "127.0.0.1"
    assert ranks.master_port > 0


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_variables_that_another_tool_has_left_are_no_launcher(name: str) -> None:
    for rest in (
        {name: TORCHRUN[name]},
        {name: "nonsense"},
        {key: value for key, value in TORCHRUN.items() if key != name},
        TORCHRUN | {name: ""},
    ):
        ranks = Ranks.from_environment(rest)
        assert (ranks.rank, ranks.world_size, ranks.is_launched) == (0, 1, False)


def test_one_rank_is_launched_only_by_what_numbers_local_ranks() -> None:
    one = TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    assert Ranks.from_environment(one).is_launched
    del one["LOCAL_RANK"]
    assert not Ranks.from_environment(one).is_launched


def test_torchrun_has_the_store_of_the_ranks() -> None:
    assert Ranks.from_environment(TORCHRUN).hosts_store
    assert not Ranks.from_environment(TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).hosts_store


@pytest.mark.parametrize(
    ("given", "threads"),
    [("4", "4"), ("4,2", "4,2"), ("", None), ("abc", None), ("0", None), ("-1", None), ("4,", None)],
)
def test_threads_are_numbers(given: str, threads: str | None) -> None:
    assert threads_given({"OMP_NUM_THREADS": given}) == threads
    assert threads_given({}) is None


def test_invalid_variables_are_refused() -> None:
    with pytest.raises(ValueError, match=r"WORLD_SIZE .*'four'"):
        Ranks.from_environment({**TORCHRUN, "WORLD_SIZE": "four"})
    with pytest.raises(ValueError, match="RANK"):
        Ranks.from_environment({**TORCHRUN, "RANK": "4"})


def test_a_launcher_may_limit_the_time_for_ranks_to_meet() -> None:
    assert Ranks.from_environment(TORCHRUN).start_timeout_seconds is None
    limited = Ranks.from_environment({**TORCHRUN, START_TIMEOUT_VARIABLE: "60"})
    assert limited.start_timeout_seconds == 60

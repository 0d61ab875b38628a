from pipeline.checkpoint.forecast import Forecast


def _forecast(free_bytes: int) -> Forecast:
    return Forecast(
        num_bytes=6_000_000_000,
        host_bytes=2_000_000_000,
        probe_bytes=30_000_000,
        probe_seconds=0.1,
        free_bytes=free_bytes,
    )


def test_the_time_follows_from_the_size_and_the_speed_of_the_probe() -> None:
    assert _forecast(10**12).bytes_per_second == 3e8
    assert _forecast(10**12).seconds == 20
    assert "about 6.000 GB on disk" in str(_forecast(10**12))
    assert "up to 2.000 GB of host memory per rank, about 20.00 s to write" in str(_forecast(10**12))


def test_a_disk_with_too_little_room_is_pointed_out() -> None:
    assert "TOO LITTLE" not in str(_forecast(6_000_000_000))
    assert "TOO LITTLE" in str(_forecast(5_999_999_999))

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
    for figure in ("5.59 GiB", "1.86 GiB", "20.00 s"):
        assert figure in str(_forecast(10**12))


def test_a_checkpoint_fits_on_a_disk_with_space_for_its_bytes() -> None:
    assert _forecast(6_000_000_000).fits
    assert not _forecast(5_999_999_999).fits

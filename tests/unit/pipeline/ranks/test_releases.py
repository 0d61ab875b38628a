import pytest

from pipeline.ranks.releases import ReleaseError, check_megatron_release
from pipeline.shared.exit_codes import ExitCode


@pytest.mark.parametrize("release", ["0.16.1", "0.17.0", "0.18.2", None])
def test_tested_releases_are_accepted(release: str | None) -> None:
    check_megatron_release(release)


@pytest.mark.parametrize("release", ["0.15.3", "0.19.0", "0.19.0rc1", "1.0"])
def test_other_releases_are_refused(release: str) -> None:
    with pytest.raises(ReleaseError, match=release) as caught:
        check_megatron_release(release)

    assert caught.value.exit_code is ExitCode.USAGE

"""Python, and the packages that this program and its extras pin."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires

from packaging.requirements import Requirement

from pipeline.checkpoint.origin import version_of
from pipeline.doctor.finding import Finding, State
from pipeline.shared.extras import how_to_install

__all__ = ["Pins", "extra_findings", "package_findings", "parse_pins", "python_finding", "required_finding"]

# By extra, and by package: the version. The empty extra holds what is always needed.
Pins = Mapping[str, Mapping[str, str]]

# As pyproject.toml requires.
_PYTHONS = ((3, 11), (3, 12), (3, 13))
# What a user may want; the others are for developers.
_EXTRAS = {
    "hf": "conversion from and to transformers",
    "eval": "eval --tasks",
    "ray": "submit --target ray",
    "fast": "tokens by gigatoken in data prepare",
    "wandb": "metrics.sinks: [wandb]",
    "mlflow": "metrics.sinks: [mlflow]",
}


def package_findings() -> Iterator[Finding]:
    """Yield the findings on Python and all packages."""
    yield python_finding(sys.version_info[:2])
    try:
        pins = parse_pins(requires("megaponder") or ())
    except PackageNotFoundError:
        yield Finding(
            name="megaponder",
            state=State.BROKEN,
            found="not installed",
            cure="pip install -e . in the folder of its sources",
        )
        return
    yield required_finding(pins, version_of)
    yield from extra_findings(pins, version_of)


def python_finding(version: tuple[int, ...]) -> Finding:
    """Return whether a version of Python is one that is supported."""
    found = ".".join(map(str, version))
    if version in _PYTHONS:
        return Finding(name="Python", state=State.OK, found=found)
    first, last = (".".join(map(str, one)) for one in (_PYTHONS[0], _PYTHONS[-1]))
    cure = f"install Python {first} to {last}, and run make setup"
    return Finding(name="Python", state=State.BROKEN, found=found, cure=cure)


def parse_pins(requirements: Iterable[str]) -> Pins:
    """Return the pinned versions among the requirements of a package, as its metadata write them.

    Those of extras that are for developers, and of other versions of Python, are left out.
    """
    read = [Requirement(text) for text in requirements]
    pins = {"": {one.name: _version(one) for one in read if _applies(one, extra="")}}
    for extra in _EXTRAS:
        own = {
            one.name: _version(one)
            for one in read
            if _applies(one, extra=extra) and not _applies(one, extra="")
        }
        if own:
            pins[extra] = own
    return pins


def _applies(requirement: Requirement, *, extra: str) -> bool:
    """Tell whether a requirement is one of an extra on this machine."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _version(requirement: Requirement) -> str:
    return str(requirement.specifier).removeprefix("==")


def required_finding(pins: Pins, installed: Callable[[str], str | None]) -> Finding:
    """Return whether what is always needed is installed, in the versions that were tested.

    Args:
        pins: all of them.
        installed: the version of a package; None if it is absent.
    """
    missing, other = _deviations(pins[""], installed)
    if missing:
        return Finding(
            name="packages",
            state=State.BROKEN,
            found=f"missing: {', '.join(missing)}",
            cure="pip install -e . in the folder of megaponder's sources",
        )
    if other:
        return Finding(
            name="packages",
            state=State.WARNING,
            found=f"other versions than were tested: {', '.join(other)}",
            cure="pip install -e . in the folder of megaponder's sources, unless it is on purpose",
        )
    return Finding(name="packages", state=State.OK, found=f"all {len(pins[''])} as pinned")


def extra_findings(pins: Pins, installed: Callable[[str], str | None]) -> Iterator[Finding]:
    """Yield whether each extra is installed; arguments as in :func:`required_finding`."""
    for extra, use in _EXTRAS.items():
        if extra not in pins:
            continue
        missing, other = _deviations(pins[extra], installed)
        name = f"extra {extra}"
        if missing:
            yield Finding(
                name=name,
                state=State.NOTE,
                found=f"not installed; for {use}",
                cure=how_to_install(extra),
            )
        elif other:
            found = f"other versions than were tested: {', '.join(other)}"
            yield Finding(name=name, state=State.WARNING, found=found, cure=how_to_install(extra))
        else:
            yield Finding(name=name, state=State.OK, found=f"for {use}")


def _deviations(
    pinned: Mapping[str, str], installed: Callable[[str], str | None]
) -> tuple[list[str], list[str]]:
    """Return the packages that are missing, and those of other versions with both."""
    missing, other = [], []
    for name, version in pinned.items():
        found = installed(name)
        if found is None:
            missing.append(name)
        elif found.partition("+")[0] != version:
            other.append(f"{name} {found} (tested: {version})")
    return missing, other

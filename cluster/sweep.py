"""Hyper-parameter sweeps: from `--sweep KEY=A,B` options to the runs of a grid."""

import re
from collections.abc import Sequence
from itertools import product

from cluster.job_spec import SweepMember
from pipeline.config.schema import RunConfig
from pipeline.shared.errors import ClusterError

# A comma inside brackets belongs to a value: `betas=[0.9,0.95],[0.9,0.99]` are two.
_OUTER_COMMA = re.compile(r",(?![^\[\]{}()]*[\])}])")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


def sweep_members(config: RunConfig, options: Sequence[str]) -> tuple[SweepMember, ...]:
    """Return the runs of all combinations; each has its own name and its own folder next to the run's.

    Args:
        config: of the run that is varied.
        options: `key=value,value,...`, each a dimension of the grid.

    Raises:
        ClusterError: an option has no key or no values, two combinations have the same name, or the target
            takes one run only.
    """
    if not options:
        return ()
    if config.submit.target == "local" or config.submit.chain > 1:
        raise ClusterError(
            f"a sweep needs --target slurm or ray without a chain, but has {config.submit.target} with "
            f"submit.chain={config.submit.chain}; submit one run, or set both"
        )
    members = [_member(config, settings) for settings in product(*(_settings(option) for option in options))]
    names = [member.name for member in members]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ClusterError(
            f"each run of a sweep must differ from the others, but {len(names)} runs are called "
            f"{', '.join(repeated)}; give every value once"
        )
    return tuple(members)


def _settings(option: str) -> list[str]:
    key, separator, text = option.partition("=")
    values = [value.strip() for value in _OUTER_COMMA.split(text)]
    if not separator or not key.strip() or not all(values):
        raise ClusterError(f"--sweep must be KEY=VALUE,VALUE..., but is {option!r}; for example lr=1e-3,3e-4")
    return [f"{key.strip()}={value}" for value in values]


def _member(config: RunConfig, settings: Sequence[str]) -> SweepMember:
    words = (setting.rpartition(".")[2] if "." in setting.split("=")[0] else setting for setting in settings)
    label = "-".join(_NOT_IN_NAMES.sub("-", word).strip("-") for word in words)
    name = f"{config.name}-{label}"
    folder = config.output_dir.with_name(f"{config.output_dir.name}-{label}").resolve()
    return SweepMember(
        name=name, run_folder=folder, overrides=(*settings, f"name={name}", f"output_dir={folder}")
    )

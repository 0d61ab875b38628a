"""How layers are dealt out to pipeline stages."""


def even_stages(num_layers: int, num_stages: int) -> tuple[int, ...]:
    """Return the layers of each stage, as even as can be; the first stages take what is left over."""
    each, left = divmod(num_layers, num_stages)
    return tuple(each + (stage < left) for stage in range(num_stages))

"""The training step of one rank of any layout, executed in one process without its device."""

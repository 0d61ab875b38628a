"""The settings of a run: one frozen, validated `RunConfig`."""

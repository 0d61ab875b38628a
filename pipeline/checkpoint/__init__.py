"""Save, find, check and load the state of a run."""

"""The self-contained report of a run and the files it is made from."""

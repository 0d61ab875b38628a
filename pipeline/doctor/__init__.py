"""Whether a machine has what the program needs, and how to cure what is missing."""

"""What can be checked in minutes on a machine with one GPU."""

"""Executing tasks on a Ray, this command's own or one that runs."""

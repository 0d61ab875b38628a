"""The commands of `megaponder`, one file each: they read the command line, call a function, show its result.

What is slow to import (torch, Megatron-Core, Ray) is imported inside the functions: `--help` is quick.
"""

"""Tokenizers, and how to train one."""

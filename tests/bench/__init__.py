"""Measurements that compare two ways of computing the same thing in one run."""

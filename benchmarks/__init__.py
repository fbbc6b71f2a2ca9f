"""Benchmarks: each file is a command, and each figure in the README comes from one."""

"""Registers Bitgate's plugin and this project's fixtures, nothing else."""

pytest_plugins = ["bitgate.plugin"]

"""What has to be installed beside Bitgate itself."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec


@dataclass(frozen=True)
class Extra:
    """What a method or a kernel needs beside Bitgate itself: `pip install bitgate[name]`."""

    name: str
    modules: tuple[str, ...]

    def missing(self) -> str | None:
        """What to say where it is not installed; None where it is."""
        absent = [module for module in self.modules if find_spec(module) is None]
        if not absent:
            return None
        return f"{', '.join(absent)} is not installed: pip install 'bitgate[{self.name}]'"


#: what fine-tuning needs; here, as collection asks for it
FINETUNE = Extra("finetune", ("peft", "bitsandbytes"))

"""One virtual environment on disk for all tox environments of this project.

tox gives each of its environments a directory and wipes a directory that another one made. Here all
need the same several gigabytes, so they use the runner ``shared``: what tox records (interpreter,
constraints, dependencies) still decides about installing again, except which of them made it.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import Any

from filelock import FileLock
from tox.plugin import impl
from tox.tox_env.api import ToxEnv
from tox.tox_env.info import Info
from tox.tox_env.python.virtual_env.runner import VirtualEnvRunner
from tox.tox_env.register import ToxEnvRegister

logger = logging.getLogger(__name__)


class SharedInfo(Info):
    """What tox records about an environment, without the name of the one that made it."""

    def compare(
        self, value: Any, section: str, sub_section: str | None = None
    ) -> AbstractContextManager[tuple[bool, Any | None]]:
        if section == ToxEnv.__name__:
            value = {**value, "name": SharedRunner.id()}
        return super().compare(value, section, sub_section)


class SharedRunner(VirtualEnvRunner):
    """A virtual environment in a directory that several tox environments use."""

    @staticmethod
    def id() -> str:
        return "shared"

    @property
    def cache(self) -> Info:
        return SharedInfo(self.env_dir)

    def setup(self) -> None:
        self.env_dir.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.env_dir}.lock"):  # two tox processes may want it at the same time
            if not self.env_dir.exists():
                logger.warning(
                    "First run: installing everything into %s. "
                    "On Linux that is a download of 3 GB and 7 GB of disk; "
                    "it takes some minutes and happens once.",
                    self.env_dir,
                )
            super().setup()


@impl
def tox_register_tox_env(register: ToxEnvRegister) -> None:
    register.add_run_env(SharedRunner)

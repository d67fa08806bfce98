"""Check the workflows with actionlint, which is no Python package, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys


def main() -> int:
    actionlint = shutil.which("actionlint")
    if actionlint is None:
        print("actionlint is not installed: .github/workflows is not checked here, but in CI")
        return 0
    return subprocess.run([actionlint], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

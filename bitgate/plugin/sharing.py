"""One budget for many workers: they learn when the run began, which a worker that replaces another
missed, and where the board of this host is."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from time import time
from typing import Any

import pytest

from bitgate.plugin import distribution
from bitgate.plugin.board import Board
from bitgate.plugin.session import Session

#: seconds from telling a worker until it listens; if it seems to be more, two clocks differ
LONGEST_START = 60.0


def tell(node: Any, session: Session) -> None:
    """Tell a worker, before it starts."""
    if BOARD not in node.config.stash:
        folder = TemporaryDirectory(prefix="bitgate-board-")
        node.config.add_cleanup(folder.cleanup)
        node.config.stash[BOARD] = Path(folder.name) / "board.jsonl"
        node.config.stash[BOARD].touch()
    distribution.tell(node, "used", session.budget.used)
    distribution.tell(node, "told", time())
    distribution.tell(node, "board", str(node.config.stash[BOARD]))


def start(config: pytest.Config, session: Session) -> None:
    """Start the budget of this process: as a worker, in the middle of it."""
    if not distribution.is_worker(config):
        session.budget.start()
        return
    since = max(time() - distribution.told(config, "told"), 0.0)
    board = Path(distribution.told(config, "board"))
    if board.is_file():
        session.budget.board = Board(board, os.getpid())
    else:  # on another host, which has a clock of its own
        since = min(since, LONGEST_START)
    session.budget.start(distribution.told(config, "used") + since)


BOARD = pytest.StashKey[Path]()

"""A process of its own: started, stopped when it takes too long or is no longer wanted, and quoted
when it fails. Its input ends when whoever started it does."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread, Timer

LAST_LINES = 8  #: of what a process that failed has to say
ABANDONED = 3  #: exit status where whoever started it is gone


@contextmanager
def started(command: Sequence[str], stderr: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process, of which nothing is left afterwards, however this ends."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,  # type: ignore[call-overload]
        start_new_session=True,  # Ctrl-C is for this process, which then kills the other
    )
    try:
        yield process
    finally:
        kill(process)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()


def kill(process: subprocess.Popen[bytes]) -> None:
    """With all that it has started; compiling does."""
    if process.poll() is not None:
        return
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


@contextmanager
def at_most(seconds: float, process: subprocess.Popen[bytes]) -> Iterator[list[bool]]:
    """Kill the process if this takes longer; what is yielded is empty unless it was."""
    late: list[bool] = []

    def stop() -> None:
        late.append(True)
        kill(process)

    timer = Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def ended(status: int) -> str:
    """How a process ended, by its exit status."""
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = str(-status)
    return f"was killed by signal {name}"


def last_words(said: Path) -> str:
    """Its last line first, as that is where Python says what went wrong."""
    lines = [li for li in said.read_text("utf-8", "replace").splitlines() if li.strip()]
    if not lines:
        return ", and said nothing"
    return "\n  ".join([f": {lines[-1].strip()}", *lines[-LAST_LINES:]])


def end_with_its_starter() -> None:
    """In the process that was started: end at once when its input does."""
    Thread(target=_listen, daemon=True).start()


def _listen() -> None:
    """By raw reads: a thread that waits inside a buffered one stops the interpreter from ending."""
    while os.read(0, 1):
        pass
    os._exit(ABANDONED)

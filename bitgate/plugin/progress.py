"""Downloads and conversions, reported on pytest's terminal although output is captured."""

from __future__ import annotations

import pytest

from bitgate.sources.progress import Lines, set_progress


def route(config: pytest.Config) -> None:
    """Send every report of progress to the terminal reporter, as lines."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:  # an xdist worker: its output is not shown
        set_progress(lambda report: None)
        return
    capture = config.pluginmanager.get_plugin("capturemanager")

    def write(text: str) -> None:
        if capture is None:
            _line(reporter, text)
            return
        with capture.global_and_fixture_disabled():
            _line(reporter, text)

    set_progress(Lines(write))


def _line(reporter: pytest.TerminalReporter, text: str) -> None:
    reporter.ensure_newline()
    reporter.write_line(f"  {text}", light=True)
    reporter.flush()

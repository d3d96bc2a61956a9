"""What a terminal, and a file in its place, shows while work goes on."""

import io
import re
import sys
import time

import pytest

from brushup.console import progress


def written(monkeypatch, is_terminal: bool, seconds: float) -> str:
    """Return what is written on standard error in so many seconds, after the third of four items is done."""

    class StandardError(io.StringIO):
        def isatty(self):
            return is_terminal

    monkeypatch.setattr("brushup.console.FIRST_LINE_AFTER", 0.2)
    monkeypatch.setattr(sys, "stderr", StandardError())
    with progress("rendering", 4, lambda: 3):
        time.sleep(seconds)
    return sys.stderr.getvalue()


def test_a_terminal_has_a_bar_and_a_file_a_line_now_and_then(monkeypatch):
    assert "rendering:  75%" in written(monkeypatch, True, 0.5)
    lines = written(monkeypatch, False, 1.0).splitlines()  # after 0.2, 0.6 and 1.4 s
    assert len(lines) in (1, 2) and all(re.fullmatch(r"rendering 3 of 4, \d s", line) for line in lines)
    assert written(monkeypatch, False, 0.0) == ""


def test_an_error_ends_the_bar(monkeypatch):
    with pytest.raises(OSError, match="disk full"), progress("rendering"):
        raise OSError("disk full")

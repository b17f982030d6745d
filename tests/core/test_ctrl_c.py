"""Ctrl-C while a program starts, and afterwards."""

from __future__ import annotations

import signal
import threading

import pytest

from diy_core.commands.ctrl_c import plain_ctrl_c


def test_afterwards_ctrl_c_is_pythons_again() -> None:
    before = signal.getsignal(signal.SIGINT)
    with plain_ctrl_c():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is before is signal.default_int_handler


def test_an_error_inside_leaves_ctrl_c_as_it_was() -> None:
    with pytest.raises(ValueError, match="no config"), plain_ctrl_c():
        raise ValueError("no config")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with plain_ctrl_c():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_may_run_a_command() -> None:
    found = []

    def run() -> None:
        with plain_ctrl_c():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]

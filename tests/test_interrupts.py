from __future__ import annotations

import signal
import threading

import pytest

from fsdray import interrupts


def interrupted(error: Exception | None = None) -> list[str]:
    done = []
    with interrupts.later():
        signal.raise_signal(signal.SIGINT)
        done.append("the rest of the block")
        if error is not None:
            raise error
    return done


def test_an_interrupt_comes_at_the_blocks_end() -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        interrupted()
    frame = caught.traceback[1].frame
    assert frame.f_locals["done"] == ["the rest of the block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_comes_also_where_the_block_fails() -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        interrupted(ImportError("what a module made of it"))
    assert isinstance(caught.value.__context__, ImportError)


def test_without_one_nothing_is_changed() -> None:
    with pytest.raises(ValueError, match="mine"), interrupts.later():
        raise ValueError("mine")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.later():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_change_no_handler() -> None:
    seen: list[object] = []

    def work() -> None:
        with interrupts.later():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]

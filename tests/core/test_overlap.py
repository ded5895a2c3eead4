"""Producer and consumer at once: same result, bounded, and no way for one to leave the other hanging."""

import os
import signal
import threading
import time

import pytest

from cogvideox.core.overlap import overlap


def count(numbers):
    return sum(1 for _ in numbers)


def test_the_result_is_the_consumer_s():
    assert overlap(list, iter(range(100))) == list(range(100))
    assert overlap(list, []) == []


def test_both_work_at_once():
    produced, consumed = threading.Event(), threading.Event()

    def items():
        yield 1
        assert consumed.wait(10)  # the consumer has the first before the second is made
        produced.set()
        yield 2

    def consume(numbers):
        assert next(numbers) == 1
        consumed.set()
        assert produced.wait(10)
        return next(numbers)

    assert overlap(consume, items()) == 2


def test_the_producer_is_never_far_ahead():
    made, taken, lead = [], [], []

    def items():
        for index in range(20):
            made.append(index)
            lead.append(len(made) - len(taken))
            yield index

    def consume(numbers):
        for number in numbers:
            time.sleep(0.002)
            taken.append(number)

    overlap(consume, items())
    assert max(lead) <= 3  # one at work on each side, one waiting


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_producer_that_fails_ends_the_consumer(error, after):
    cleaned = []

    def items():
        yield from range(after)
        raise error

    def consume(numbers):
        try:
            return count(numbers)
        finally:
            cleaned.append(threading.current_thread())

    with pytest.raises(type(error)) as caught:
        overlap(consume, items())
    assert caught.value is error
    assert len(cleaned) == 1
    assert not cleaned[0].is_alive()


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_consumer_that_fails_ends_the_producer(after):
    made = []

    def items():
        for index in range(1000):
            made.append(index)
            yield index

    def consume(numbers):
        for _ in range(after):
            next(numbers)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        overlap(consume, items())
    assert len(made) <= after + 3


def test_a_consumer_may_stop_early():
    assert overlap(next, iter(range(1000))) == 0


@pytest.mark.parametrize("asleep", [True, False])
def test_ctrl_c_reaches_a_producer_at_work_or_waiting(asleep):
    ended = threading.Event()

    def items():
        yield 0
        if asleep:
            time.sleep(60)
        yield from range(1, 10)

    def consume(numbers):
        try:
            next(numbers)
            time.sleep(0.1)  # the producer is asleep, or waits for room
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            return count(numbers)
        finally:
            ended.set()

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        overlap(consume, items())
    assert ended.is_set()
    assert time.monotonic() - start < 30

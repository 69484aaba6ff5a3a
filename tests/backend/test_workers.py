"""Threads that answer requests."""

from __future__ import annotations

import threading

from gati.system.workers import Workers


def test_jobs_are_done_at_the_same_time_and_further_ones_wait() -> None:
    workers = Workers(2, lambda error: None)
    both, go = threading.Barrier(3), threading.Event()
    later: list[int] = []

    def job() -> None:
        both.wait(5)
        go.wait(5)

    workers.submit(job)
    workers.submit(job)
    both.wait(5)  # two at once, or this breaks
    workers.add(lambda: later.append(1))
    assert (workers.waiting, later) == (1, [])
    go.set()
    workers.close()
    assert later == [1]


def test_what_a_job_raises_is_told_and_its_thread_goes_on() -> None:
    told: list[Exception] = []
    done: list[int] = []
    workers = Workers(1, told.append)
    workers.submit(lambda: done.append(1 // 0))
    workers.submit(lambda: done.append(1))
    workers.run(lambda: done.append(1 // 0))
    workers.close()
    assert done == [1]
    assert [type(error) for error in told] == [ZeroDivisionError] * 2


def test_closing_waits_for_what_was_taken() -> None:
    done: list[int] = []
    workers = Workers(1, lambda error: None)
    for number in range(100):
        workers.submit(lambda number=number: done.append(number))
    workers.close()
    assert done == list(range(100))


def test_closing_can_be_told_not_to_wait_for_a_job_that_hangs() -> None:
    workers, go = Workers(1, lambda error: None), threading.Event()
    workers.add(lambda: go.wait(30) and None)
    workers.close(0.01)  # returns
    go.set()


def test_a_job_that_comes_alone_is_left_for_a_while_unless_a_crowd_comes() -> None:
    workers, done, first = Workers(1, lambda error: None, linger=30, batch=3), list[int](), threading.Event()
    workers.add(lambda: done.append(0))
    first.wait(0.05)
    assert not done, "others may come meanwhile"
    for number in (1, 2):
        workers.add(lambda number=number: done.append(number))
    workers.add(first.set)
    workers.add(lambda: None)  # is left for a while in its turn
    assert first.wait(5)
    assert done == [0, 1, 2]

import time

from shoal_agent.inference.watchdog import Watchdog


class Run:
    terminate = False


def wait_for(condition, timeout_s: float = 5.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def test_a_run_that_is_late_is_told_to_stop_and_the_next_one_is_not():
    dog, late, soon = Watchdog(), Run(), Run()
    dog.begin(late, 0.01)
    wait_for(lambda: late.terminate)
    assert dog.barked
    dog.end()
    dog.begin(soon, 60.0)
    assert not dog.barked
    dog.end()
    assert not soon.terminate


def test_runs_that_end_in_time_are_left_alone_however_many():
    dog = Watchdog()
    runs = [Run() for _ in range(1000)]
    for run in runs:
        dog.begin(run, 0.5)
        dog.end()
    last = Run()
    dog.begin(last, 0.01)
    wait_for(lambda: last.terminate)
    assert not any(run.terminate for run in runs)

"""Times relative to a yardstick: what slows everything down changes nothing."""

import pytest

from tenfold.runtimes.rounds import relative_times


class Machine:
    """A clock, and work that takes so many ticks at a speed that drifts from round to round."""

    def __init__(self, drift):
        self.now, self.calls, self.drift = 0.0, 0, drift

    def work(self, ticks):
        def call():
            self.calls += 1
            self.now += ticks * self.drift(self.calls)

        return call


def test_a_speed_that_drifts_between_rounds_cancels():
    machine = Machine(lambda call: 1.0 + (call - 1) // 3)  # three calls a round
    found = relative_times(
        {"a": machine.work(2), "b": machine.work(6)}, machine.work(4), rounds=9, clock=lambda: machine.now
    )
    assert found == {"a": pytest.approx(0.5), "b": pytest.approx(1.5)}


def test_single_disturbances_do_not_count():
    machine = Machine(lambda call: 50.0 if call in (7, 11) else 1.0)
    found = relative_times({"a": machine.work(3)}, machine.work(1), rounds=9, clock=lambda: machine.now)
    assert found["a"] == pytest.approx(3.0)


def test_what_empties_the_caches_is_not_in_the_time_and_comes_before_every_call():
    machine, emptied = Machine(lambda call: 1.0), []

    def before():
        emptied.append(machine.calls)
        machine.now += 100

    found = relative_times({"a": machine.work(2)}, machine.work(1), rounds=3, clock=lambda: machine.now, before=before)
    assert found["a"] == pytest.approx(2.0)
    assert emptied == list(range(8))

"""A signal before the first step ends a run, whatever Python was doing when it came."""

import gc
import os
import signal

import pytest

from lm.train.stop import Signals, Stopped


@pytest.fixture
def collected():
    """Callbacks of the garbage collector, for one test."""
    before = list(gc.callbacks)
    yield gc.callbacks
    gc.callbacks[:] = before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_comes_in_a_callback_of_the_garbage_collector_is_not_lost(collected):
    collected.append(lambda phase, _: phase == "start" and signals.name == "" and os.kill(os.getpid(), signal.SIGTERM))
    with Signals() as signals:
        gc.collect()
        assert signals.name == "SIGTERM"  # Python has dropped what the handler raised
        with pytest.raises(Stopped, match="SIGTERM"):
            signals.start_loop()


def test_a_signal_in_the_loop_is_for_the_step_at_hand_to_end_with():
    with Signals() as signals:
        signals.start_loop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.name == "SIGTERM"

"""Processes that meet, as threads with a channel each: who is missing, lost, different or failing is named to all."""

import concurrent.futures
import json
import re
import socket
import threading
import time

import pytest

from lm.errors import ConfigError, ProcessError
from lm.launch_local import free_port
from lm.parallel import processes
from lm.parallel.channel import join
from lm.parallel.hub import listen
from lm.parallel.launch import Launch
from lm.parallel.watchdog import Watchdog


@pytest.fixture
def meet():
    """A function that joins some indices of a job and waits for all, each in a thread; gives channels or errors by index."""
    opened = []

    def make(count, indices=None, facts=lambda index: {}, start=5.0, heartbeat=5.0, counts=lambda count: count):
        port = free_port()

        def one(index):
            channel = join(Launch("test", f"127.0.0.1:{port}", counts(count) if index else count, index), facts(index), start, heartbeat)
            opened.append(channel)
            channel.meet(start)
            return channel

        return together(one, range(count) if indices is None else indices)

    yield make
    for channel in opened:
        channel.leave()
        channel.close()


def together(act, items):
    """The results or errors of `act` on each item, at the same time."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(act, item) for item in items]
        return [future.exception() or future.result() for future in futures]


def texts(results):
    """Messages of what must all be ProcessErrors."""
    assert all(isinstance(result, ProcessError) for result in results), results
    return [str(result) for result in results]


def test_values_reach_all_in_the_order_of_processes_and_names_may_be_used_again(meet):
    channels = meet(4)
    for turn in range(3):
        values = together(lambda channel, turn=turn: channel.gather("x", [channel.index, turn], 5), channels)
        assert values == [[[index, turn] for index in range(4)]] * 4
    assert channels[3].names[2].startswith(f"process 2 ({socket.gethostname()}, pid ")


@pytest.mark.parametrize(("here", "words"), [([0], "processes 1, 2 of 3 did not start within 0.5 s"),
                                             ([0, 2], r"process 1 of 3 did not start .* here: process 0 \(.*\), process 2 \(")])
def test_a_process_that_never_comes_is_named_to_those_that_did(meet, here, words):
    for text in texts(meet(3, here, start=0.5)):
        assert re.search(words, text)


def test_without_process_0_the_others_say_where_they_looked(meet):
    [text] = texts(meet(2, [1], start=0.5))
    assert "process 1 of 2 cannot reach process 0 at 127.0.0.1:" in text and "firewall" in text


def test_processes_that_differ_are_refused_with_what_differs(meet):
    for text in texts(meet(3, facts=lambda index: {"jax": "1.0", "config seed": 7 if index == 2 else 0})):
        assert text.startswith("process 2 (") and "config seed is 7 there and 0 in process 0" in text
    for text in texts(meet(2, counts=lambda count: 3)):
        assert "was started for 3 processes, process 0 for 2" in text


def test_an_index_that_comes_twice_is_refused(meet):
    results = meet(3, [0, 1, 1])
    assert all("process 1 was started twice" in text for text in texts(results))


def test_a_port_that_is_taken_is_an_error():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ProcessError, match=rf"cannot listen on port {port} \(Address already in use\)"):
            listen(port)


def test_another_program_on_the_port_is_recognised():
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept()[0].sendall(b"220 mail.example.org\r\n"), daemon=True).start()
        channel = join(Launch("test", f"127.0.0.1:{server.getsockname()[1]}", 2, 1), {}, 5.0, 5.0)
        with pytest.raises(ProcessError, match="another program or job"):
            channel.meet(5.0)


def test_a_stranger_at_the_port_does_no_harm(meet):
    def knock(port):
        for text in (b"GET / HTTP/1.1\r\n\r\n", b'{"op": "gather"}\n', b'{"op": 3}\n', b"[]\n"):
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.sendall(text)

    port = free_port()
    first = join(Launch("test", f"127.0.0.1:{port}", 2, 0), {}, 5.0, 5.0)
    knock(port)
    second = join(Launch("test", f"127.0.0.1:{port}", 2, 1), {}, 5.0, 5.0)
    assert together(lambda channel: channel.gather("x", channel.index, 5), [first, second]) == [[0, 1]] * 2
    for channel in (second, first):
        channel.leave()
        channel.close()


def test_after_the_start_the_port_is_free_for_jax(meet):
    port = free_port()
    launches = [Launch("test", f"127.0.0.1:{port}", 2, index) for index in range(2)]
    channels = together(lambda launch: join(launch, {}, 5.0, 5.0), launches)
    together(lambda channel: channel.meet(5.0), channels)
    listen(port).close()
    for channel in channels:
        channel.leave()


def test_a_barrier_that_times_out_names_the_missing(meet):
    channels = meet(3)
    started = time.monotonic()
    for text in texts(together(lambda channel: channel.gather("before lunch", None, 0.5), [channels[0], channels[2]])):
        assert text.startswith("process 1 (") and text.endswith("did not come to before lunch within 0.5 s")
    assert 0.4 < time.monotonic() - started < 3


@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_dies_is_named_at_once_to_whoever_waits(meet, lost):
    channels = meet(3)
    others = [channel for channel in channels if channel.index != lost]
    heard = []
    for channel in others:
        channel.on_verdict = heard.append
    threading.Timer(0.2, lambda: channels[lost]._connection.shutdown(socket.SHUT_RDWR)).start()
    started = time.monotonic()
    if lost == 0:
        # The hub dies with its process.
        channels[1]._connection.shutdown(socket.SHUT_RD)
        [text] = texts(together(lambda channel: channel.gather("x", None, 60), [channels[1]]))
        assert text.startswith("process 0 (") and " is gone: " in text
        return
    for text in texts(together(lambda channel: channel.gather("x", None, 60), others)):
        assert text.startswith("process 1 (") and " is gone: its connection closed" in text
    assert time.monotonic() - started < 3 and [verdict["index"] for verdict in heard] == [1, 1]


def test_a_process_that_says_nothing_any_more_is_lost_after_the_heartbeat_timeout(meet):
    channels = meet(2, heartbeat=1.0)
    channels[1]._send = lambda message: None
    started = time.monotonic()
    [text] = texts(together(lambda channel: channel.gather("x", None, 60), channels[:1]))
    assert "process 1 (" in text and "nothing heard from it for 1 s (processes.heartbeat_timeout)" in text
    assert 0.7 < time.monotonic() - started < 5


def test_quiet_processes_that_live_are_not_lost(meet):
    channels = meet(2, heartbeat=1.0)
    time.sleep(1.8)
    assert together(lambda channel: channel.gather("x", channel.index, 5), channels) == [[0, 1]] * 2


def test_processes_that_say_good_bye_are_not_missed(meet):
    channels = meet(2, heartbeat=1.0)
    channels[1].leave()
    channels[1].close()
    time.sleep(1.4)
    assert channels[0].verdict is None


@pytest.mark.parametrize(("fails", "expected"), [
    ([(1, "bad text", True)], (1, "bad text", 2)),
    ([(1, "same", True), (0, "same", True)], (0, "same", 2)),
    ([(2, "XlaError: peer", False), (1, "no space", True)], (1, "no space", 2)),
])
def test_an_error_in_one_process_is_the_end_of_all_and_its_cause_is_chosen(meet, fails, expected):
    channels = meet(3)
    others = together(lambda fail: channels[fail[0]].fail(fail[1], 2, fail[2]), fails)
    for verdict in [*others, *(channel._verdict_within(5) for channel in channels)]:
        assert (verdict["kind"], verdict["index"], verdict["text"], verdict["code"]) == ("failed", *expected)


def test_a_death_explains_the_errors_that_it_causes_elsewhere(meet):
    channels = meet(3)
    threading.Timer(0.5, lambda: channels[1]._connection.shutdown(socket.SHUT_RDWR)).start()
    verdict = channels[2].fail("ValueError: Gloo: connection reset", 1, known=False)
    assert (verdict["kind"], verdict["index"]) == ("gone", 1)


@pytest.mark.parametrize("who", [0, 2])
def test_a_signal_in_one_process_stops_all_at_the_same_step(meet, who):
    channels = meet(3)
    running = threading.Barrier(3)

    def run(channel):
        for done in range(1, 400):
            running.wait(20)  # a step of training ends for none before all have begun it
            if channel.stop_at(done, "SIGTERM" if channel.index == who and done >= 20 else ""):
                return done
        return None

    results = together(run, channels)
    assert len(set(results)) == 1 and 20 <= results[0] < 30
    assert all(channel.stop["signal"] == "SIGTERM" and channel.stop["name"].startswith(f"process {who} (") for channel in channels)


def test_two_signals_at_once_are_one_stop(meet):
    channels = meet(2)
    assert together(lambda channel: [channel.stop_at(done, "SIGINT") for done in (5, 6)], channels) == [[False, True]] * 2


def test_alone_everything_is_simple():
    assert (processes.index(), processes.count(), processes.is_first()) == (0, 1, True)
    assert processes.gather("x", {"a": 1}) == [{"a": 1}] and processes.first("x", lambda: 3) == 3
    assert processes.first_then_all("x", lambda: 4) == 4
    assert not processes.stop_at(3) and processes.stop_at(3, "SIGTERM") and processes.stopped_by("SIGTERM") == "SIGTERM"
    processes.barrier("x")
    with pytest.raises(ValueError, match="boom"), processes.member(None):
        raise ValueError("boom")


@pytest.mark.parametrize(("required", "words"), [("tpu", "required|require_accelerator=tpu, but JAX found 8 cpu devices"),
                                                 ("cpu:4", r"require_accelerator=cpu:4, but JAX found 8 cpu devices \(cpu\)")])
def test_other_devices_than_expected_are_an_error(required, words):
    with pytest.raises(ConfigError, match=words):
        processes.check_accelerator(required)
    processes.check_accelerator("cpu:8")
    processes.check_accelerator("cpu")
    processes.check_accelerator("")


def test_the_watchdog_barks_once_and_says_since_when():
    heard = []
    dog = Watchdog(0.8, heard.append)
    for step in range(5):
        time.sleep(0.2)
        dog.beat(f"step {step}")
    assert not heard
    with dog.longer(5.0):
        time.sleep(1.1)
    assert not heard
    time.sleep(1.6)
    dog.close()
    assert len(heard) == 1 and "processes.step_timeout=0.8) since step 4" in heard[0]


def test_hub_answers_are_one_line_of_json_each(meet):
    channels = meet(2)
    values = [{"text": "a\nb", "number": 1.5}, None]
    assert together(lambda channel: channel.gather("x", values[channel.index], 5), channels) == [json.loads(json.dumps(values))] * 2

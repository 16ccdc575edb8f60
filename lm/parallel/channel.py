"""This process's connection to process 0: values and barriers with names and time-outs, a common stop, and the end of all together.

Everything is small JSON over one TCP connection, apart from JAX; `hub.py` is the other end. What one process meets
(its death, an error, a time-out) reaches the others as a verdict, within milliseconds or after the heartbeat time-out.
"""

import collections
import contextlib
import json
import os
import select
import socket
import threading
import time
from collections.abc import Callable

from lm.errors import ProcessError
from lm.parallel.hub import CLOSED, UNKNOWN_GRACE, Hub, listen
from lm.parallel.launch import Launch

RETRY = 0.2
# A time-out is the hub's to tell, which knows who is missing; this much later the hub itself is taken for silent.
SLACK = 5.0


class Channel:
    """A process's end of the meeting. `join` makes one. All methods may be called from any thread."""

    def __init__(self, connection: socket.socket, launch: Launch, facts: dict, heartbeat_timeout: float):
        self.index, self.count, self.heartbeat = launch.index, launch.count, heartbeat_timeout
        self.names = [f"process {each}" for each in range(launch.count)]
        self.verdict: dict | None = None
        self.on_verdict: Callable[[dict], None] | None = None
        self.stop: dict | None = None  # signal, name and step of an agreed stop
        self._connection, self._step, self._stopping = connection, -1, False
        self._welcome, self._left = False, False
        self._results: dict[str, list] = {}
        self._uses = collections.Counter()
        self._changed, self._sending = threading.Condition(), threading.Lock()
        self._send({"op": "hello", "index": self.index, "count": self.count, "host": socket.gethostname(), "pid": os.getpid(),
                    "facts": facts})
        threading.Thread(target=self._listen, name="channel", daemon=True).start()

    def meet(self, timeout: float):
        """Waits until all processes are here. ProcessError names who is not, `timeout` seconds after process 0 began to wait."""
        self._wait(lambda: self._welcome, timeout + SLACK, f"process {self.index}: what listens at the coordinator's port does not answer: "
                   "another job or program has it; choose another, the same for all processes")

    def gather(self, name: str, value, timeout: float | None) -> list:
        """The values of all processes under a name, by index; `timeout` in seconds, None waits as long as all are alive.

        All processes must call it with the same names in the same order. ProcessError names who is missing.
        """
        with self._changed:
            self._uses[name] += 1
            key = f"{name}#{self._uses[name]}"
        self._send({"op": "gather", "key": key, "value": value, "timeout": timeout})
        self._wait(lambda: key in self._results, timeout and timeout + SLACK, f"process 0 does not answer about {name}")
        return self._results.pop(key)

    def stop_at(self, done: int, wanted: str = "") -> bool:
        """Whether to stop after step `done`, the same step in all processes. `wanted` names a signal that asks for it here."""
        with self._changed:
            self._step = max(self._step, done)
            ask = wanted and not self._stopping
            self._stopping = self._stopping or bool(wanted)
        if ask:
            self._send({"op": "stop", "signal": wanted})
        if self._stopping and self.stop is None:
            self._wait(lambda: self.stop is not None, self.heartbeat + SLACK, "process 0 does not say when to stop")
        return self.stop is not None and done >= self.stop["step"]

    def fail(self, text: str, code: int, known: bool) -> dict | None:
        """Tells all that this process ends with an error; returns why all end (perhaps another's fault), None if nobody answers."""
        self._send({"op": "failed", "text": text, "code": code, "known": known})
        return self._verdict_within(UNKNOWN_GRACE + 2)

    def stuck(self, text: str) -> dict | None:
        """Tells all that this process makes no progress; returns the verdict."""
        self._send({"op": "stuck", "text": text})
        return self._verdict_within(2)

    def leave(self):
        """Says good-bye: from now on nobody misses this process."""
        self._left = True
        self._send({"op": "bye"})

    def close(self):
        """Closes the connection; without `leave` the others take it for a death."""
        self._left = True
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _verdict_within(self, seconds):
        with self._changed:
            self._changed.wait_for(lambda: self.verdict is not None, seconds)
            return self.verdict

    def _wait(self, ready, timeout, late):
        until = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not ready():
                if self.verdict is not None:
                    raise ProcessError(self.verdict["text"])
                if until is not None and time.monotonic() > until:
                    raise ProcessError(late)
                self._changed.wait(1.0)

    def _send(self, message):
        with contextlib.suppress(OSError), self._sending:  # the listening thread sees the end of the connection and says so
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def _listen(self):
        """Reads until the connection ends; beats as often as the hub."""
        buffer, heard, beat = b"", time.monotonic(), 0.0
        while True:
            ready, _, _ = select.select([self._connection], [], [], min(0.5, self.heartbeat / 10))
            if ready:
                try:
                    data = self._connection.recv(1 << 16)
                except OSError:
                    data = b""
                if not data:
                    return self._ended(CLOSED)
                heard = time.monotonic()
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    self._handle(line)
            now = time.monotonic()
            if now - heard > self.heartbeat and self._welcome:
                return self._ended(f"nothing heard from it for {self.heartbeat:g} s (processes.heartbeat_timeout)")
            if now >= beat:
                beat = now + self.heartbeat / 5
                self._send({"op": "beat"})

    def _handle(self, line):
        try:
            message = json.loads(line)
            kind = message["op"]
        except (ValueError, KeyError, TypeError):
            return self._ended("what listens there is another program or job: choose another coordinator port")
        with self._changed:
            if kind == "welcome":
                self.names, self._welcome = message["names"], True
            elif kind == "gathered":
                self._results[message["key"]] = message["values"]
            elif kind == "stop_at":
                self.stop = message
            elif kind == "where":
                self._stopping = True
                self._send({"op": "here", "step": self._step})
            self._changed.notify_all()
        if kind == "verdict":
            self._judge(message)

    def _ended(self, why):
        if not self._left:
            self._judge({"kind": "gone", "index": 0, "name": self.names[0], "text": f"{self.names[0]} is gone: {why}", "code": 1})

    def _judge(self, verdict):
        with self._changed:
            if self.verdict is not None:
                return
            self.verdict = verdict
            self._changed.notify_all()
        if self.on_verdict is not None:
            self.on_verdict(verdict)


def join(launch: Launch, facts: dict, start_timeout: float, heartbeat_timeout: float) -> Channel:
    """A channel to the other processes of a launch, which may still be on their way: `meet` waits for them.

    ProcessError when process 0 cannot listen, or cannot be reached for `start_timeout` seconds. `facts` (JSON values by name)
    must be the same in all processes, or all end with an error that names one that differs and in what.
    """
    if launch.index == 0:
        connection, other = socket.socketpair()
        Hub(listen(launch.address[1]), other, launch.count, start_timeout, heartbeat_timeout)
    else:
        connection = _connect(launch, time.monotonic() + start_timeout, start_timeout)
    return Channel(connection, launch, facts, heartbeat_timeout)


def _connect(launch, deadline, timeout):
    """A connection to the hub, as soon as it listens."""
    while True:
        try:
            connection = socket.create_connection(launch.address, timeout=max(RETRY, min(10.0, deadline - time.monotonic())))
            connection.settimeout(None)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        except OSError as error:
            if time.monotonic() > deadline:
                raise ProcessError(f"process {launch.index} of {launch.count} cannot reach process 0 at {launch.coordinator} within "
                                   f"{timeout:g} s ({error.strerror or error}): is process 0 up, is the address right, does a firewall "
                                   "block the port?") from error
        time.sleep(RETRY)

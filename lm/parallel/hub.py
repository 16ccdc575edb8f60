"""The meeting point of a job's processes, in a thread of process 0: who is here, who is missing, what all of them said.

It speaks lines of JSON over TCP, so that it can name a process that never came, died or disagrees; JAX's own coordination
service ends all processes with a C++ stack trace instead. It only listens until all have come: JAX then takes the port.
"""

import contextlib
import errno
import json
import os
import selectors
import socket
import threading
import time

from lm.errors import ProcessError

# How long an error waits for a better explanation: that process 0 has the same one, or that another process died and caused it.
KNOWN_GRACE, UNKNOWN_GRACE = 1.0, 4.0
# An error before all have come (a wrong config) waits for the others to come and hear it.
START_GRACE = 10.0
LINGER = 5.0
CLOSED = "its connection closed (was it killed? its log may say more)"


class Peer:
    """One connected process."""

    def __init__(self, connection: socket.socket):
        self.connection, self.buffer = connection, b""
        self.index, self.name, self.facts = None, "", {}
        self.heard, self.left, self.step = time.monotonic(), False, None


class Hub:
    """Serves `count` processes. `own` is process 0's end of its own connection; `listener` is closed once all are here."""

    def __init__(self, listener: socket.socket, own: socket.socket, count: int, start_timeout: float, heartbeat_timeout: float):
        self.count, self.start_timeout, self.heartbeat = count, start_timeout, heartbeat_timeout
        self._listener, self._peers = listener, {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, None)
        self._add(own)
        self._deadline = time.monotonic() + start_timeout
        self._gathers: dict[str, dict] = {}
        self._failures: dict[int, dict] = {}
        self._stop = self._decide_at = self._verdict = None
        self._beat_at = 0.0
        threading.Thread(target=self._serve, name="hub", daemon=True).start()

    def _serve(self):
        ended = None
        while ended is None or time.monotonic() < ended:
            for key, _ in self._selector.select(timeout=min(0.5, self.heartbeat / 10)):
                self._accept() if key.data is None else self._read(key.data)
            if self._verdict is None:
                self._watch()
            if ended is None and (self._verdict or (self._peers and all(peer.left for peer in self._peers.values()))):
                ended = time.monotonic() + LINGER
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()

    def _accept(self):
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        self._add(connection)

    def _add(self, connection):
        connection.settimeout(self.heartbeat)
        self._selector.register(connection, selectors.EVENT_READ, Peer(connection))

    def _read(self, peer: Peer):
        try:
            data = peer.connection.recv(1 << 16)
        except OSError as error:
            return self._lost(peer, error.strerror or str(error))
        if not data:
            return self._lost(peer, CLOSED)
        peer.heard = time.monotonic()
        *lines, peer.buffer = (peer.buffer + data).split(b"\n")
        for line in lines:
            try:
                message = json.loads(line)
                handle = getattr(self, f"_on_{message['op']}")
            except (ValueError, KeyError, TypeError, AttributeError):
                return self._forget(peer)  # not one of ours
            if message["op"] == "hello" or peer.index is not None:
                handle(peer, message)

    def _forget(self, peer):
        if peer.connection.fileno() >= 0:
            self._selector.unregister(peer.connection)
            peer.connection.close()

    def _lost(self, peer, why):
        self._forget(peer)
        if peer.index is not None and not peer.left and peer.index not in self._failures:
            self._decide("gone", peer.index, f"{self._called(peer.index)} is gone: {why}")

    def _watch(self):
        """What time alone decides: the missing, the silent, and errors that nobody explains better."""
        now = time.monotonic()
        if self._listener is not None and now > self._deadline:
            self._missing_at_start()
        for key, gather in list(self._gathers.items()):
            if gather["deadline"] and now > gather["deadline"] and self._verdict is None:
                names = ", ".join(self._called(index) for index in range(self.count) if index not in gather["values"])
                self._decide("missing", None, f"{names} did not come to {key.rsplit('#', 1)[0]} within {gather['timeout']:g} s")
        for index, peer in self._peers.items():
            if not peer.left and self._listener is None and now - peer.heard > self.heartbeat:
                self._decide("gone", index, f"{self._called(index)} is gone: nothing heard from it for {self.heartbeat:g} s "
                                            "(processes.heartbeat_timeout)")
        if self._decide_at is not None and now >= self._decide_at:
            index = 0 if 0 in self._failures else min(self._failures, key=lambda index: (not self._failures[index]["known"], index))
            self._decide("failed", index, self._failures[index]["text"], self._failures[index]["code"])
        if now >= self._beat_at:
            self._beat_at = now + self.heartbeat / 5
            self._broadcast({"op": "beat"})

    def _missing_at_start(self):
        missing = [index for index in range(self.count) if index not in self._peers]
        here = ", ".join(self._called(index) for index in sorted(self._peers))
        names = ("process " if len(missing) == 1 else "processes ") + ", ".join(map(str, missing[:20])) + (" ..." if missing[20:] else "")
        self._decide("missing", None, f"{names} of {self.count} did not start within {self.start_timeout:g} s (processes.start_timeout); "
                                      f"here: {here}. Look at the log of the missing, and whether it reaches process 0's port")

    def _called(self, index) -> str:
        return self._peers[index].name if index in self._peers else f"process {index}"

    def _decide(self, kind, index, text, code=1):
        """The one reason for which all processes end."""
        if self._verdict is None:
            name = self._called(index) if index is not None else ""
            self._verdict = {"op": "verdict", "kind": kind, "index": index, "name": name, "text": text, "code": code}
            self._broadcast(self._verdict)

    def _broadcast(self, message):
        for index in sorted(self._peers, reverse=True):  # process 0 last: this thread ends with it
            self._send(self._peers[index], message)

    def _send(self, peer, message):
        with contextlib.suppress(OSError):  # its end shows in reading, or in its silence
            peer.connection.sendall(json.dumps(message).encode() + b"\n")

    def _on_hello(self, peer, message):
        peer.index, peer.facts = message["index"], message["facts"]
        peer.name = f"process {peer.index} ({message['host']}, pid {message['pid']})"
        other = self._peers.get(peer.index)
        problem = self._problem(peer, message, other)
        if other is None:
            self._peers[peer.index] = peer
        if problem:
            self._decide("start", None, problem)
        if self._verdict:
            self._send(peer, self._verdict)
        elif len(self._peers) == self.count:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None
            if self._failures:
                self._decide_within(KNOWN_GRACE)
            self._broadcast({"op": "welcome", "names": [self._called(index) for index in range(self.count)]})

    def _problem(self, peer, message, other) -> str:
        """Why this process cannot be part of the job, or ""."""
        if message["count"] != self.count:
            return f"{peer.name} was started for {message['count']} processes, process 0 for {self.count}: start all alike"
        if other is not None:
            return f"process {peer.index} was started twice, as {other.name} and {peer.name}: give each process an index of its own"
        first = peer if peer.index == 0 else self._peers.get(0)
        for each in self._peers.values() if peer is first else [peer] if first else []:
            for name in sorted(first.facts.keys() | each.facts.keys()):
                here, there = first.facts.get(name), each.facts.get(name)
                if here != there:
                    return f"{each.name} differs from process 0: {name} is {there!r} there and {here!r} in process 0; start all alike"
        return ""

    def _on_beat(self, peer, message):
        pass

    def _on_gather(self, peer, message):
        gather = self._gathers.setdefault(message["key"], {"values": {}, "timeout": message["timeout"], "deadline": None})
        if message["timeout"] and gather["deadline"] is None:
            gather["deadline"] = time.monotonic() + message["timeout"]
        gather["values"][peer.index] = message["value"]
        if len(gather["values"]) == self.count:
            del self._gathers[message["key"]]
            values = [gather["values"][index] for index in range(self.count)]
            self._broadcast({"op": "gathered", "key": message["key"], "values": values})

    def _on_failed(self, peer, message):
        self._failures.setdefault(peer.index, message)
        if self._verdict:
            self._send(peer, self._verdict)
        elif peer.index == 0 and message["known"] and self._listener is None:
            self._decide("failed", 0, message["text"], message["code"])
        else:
            self._decide_within(START_GRACE if self._listener else KNOWN_GRACE if message["known"] else UNKNOWN_GRACE)

    def _decide_within(self, seconds):
        until = time.monotonic() + seconds
        self._decide_at = until if self._decide_at is None else min(self._decide_at, until)

    def _on_stuck(self, peer, message):
        self._decide("stuck", peer.index, f"{peer.name}: {message['text']}")

    def _on_stop(self, peer, message):
        if self._stop is None:
            self._stop = {"op": "stop_at", "signal": message["signal"], "name": peer.name}
            self._broadcast({"op": "where"})

    def _on_here(self, peer, message):
        peer.step = message["step"]
        if all(peer.step is not None for peer in self._peers.values()):
            # Nobody passes the end of the step after its own without knowing this: the furthest one's next is met by all.
            self._broadcast(self._stop | {"step": max(peer.step for peer in self._peers.values()) + 1})

    def _on_bye(self, peer, message):
        peer.left = True


def listen(port: int) -> socket.socket:
    """A socket that listens on a port of all addresses. ProcessError when the port is taken or forbidden."""
    try:
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):  # no IPv6 here
            raise _cannot_listen(port, error) from error
    try:
        return socket.create_server(("", port), backlog=4096)
    except OSError as error:
        raise _cannot_listen(port, error) from error


def _cannot_listen(port, error):
    return ProcessError(f"process 0 cannot listen on port {port} ({os.strerror(error.errno)}): another job or program has it; choose "
                        "another coordinator port, the same for all processes")

"""A front's end of the Unix socket to the engine, on an event loop; torch-free."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import zmq

from headrace.serve import wire
from headrace.serve.wire import FromEngine, ToEngine

TURN = 0.002
"""Seconds of taking messages at a stretch."""


class Link:
    """Listens for the engine, which connects to every front; each start of it has a number of its own.

    `received(number, message)` is called on the loop for all that any engine process says; `dropped()` when one
    of them has gone away, dead or not.
    """

    def __init__(
        self,
        folder: str | Path,
        front: int,
        received: Callable[[int, FromEngine], None],
        dropped: Callable[[], None],
    ):
        self._received, self._dropped = received, dropped
        self._loop = asyncio.get_running_loop()
        self._zmq = zmq.Context()
        self._socket = self._zmq.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._socket.bind(wire.address(folder, front))
        self._loop.add_reader(self._socket.fileno(), self._read)
        self._loop.add_reader(self._monitor.fileno(), self._notice)
        self._loop.call_soon(self._read)  # not now: whoever makes this is not whole yet

    def send(self, engine: int, message: ToEngine) -> None:
        """Queue a message for that engine process; it is dropped where there is none of that number."""
        if self._socket.closed:
            return
        self._socket.send_multipart((b"E%d" % engine, wire.encode(message)), zmq.NOBLOCK, copy=True)
        # A socket's descriptor tells of changes only: sending may have consumed one that said "something came".
        if self._socket.poll(0):
            self._loop.call_soon(self._read)

    def close(self) -> None:
        if self._socket.closed:
            return
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_reader(self._monitor.fileno())
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)
        self._zmq.term()

    def _read(self) -> None:
        """Take what is there; after TURN seconds others on the loop have their turn, or nobody would be answered."""
        end = monotonic() + TURN
        while not self._socket.closed:
            try:
                name, body = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._received(int(name[1:]), wire.decode_from_engine(body))
            if monotonic() > end:
                self._loop.call_soon(self._read)
                return

    def _notice(self) -> None:
        while not self._monitor.closed:
            try:
                self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._dropped()

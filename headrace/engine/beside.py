"""A thread for one piece of work at a time, beside the thread that asks for it."""

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread

Work = Callable[[], None]


class Beside:
    """For work that lets go of Python's lock.

    Threads take turns with it where one blocks, or after 5 ms. So `start` returns when the work has begun: else that
    would be when somebody waits for its end.
    """

    def __init__(self) -> None:
        self._asked: SimpleQueue[Work | None] = SimpleQueue()
        self._begun: SimpleQueue[None] = SimpleQueue()
        self._ended: SimpleQueue[BaseException | None] = SimpleQueue()
        self._thread: Thread | None = None
        self.busy = False
        """Whether work was started, or nearly, that nobody has waited for."""

    def start(self, work: Work) -> None:
        """Have it done; `wait` is to follow before the next."""
        if self._thread is None or not self._thread.is_alive():  # it is not in a copy of the process
            self._thread = Thread(
                target=_work, args=(self._asked, self._begun, self._ended), name="beside", daemon=True
            )
            self._thread.start()
        self.busy = True
        self._asked.put(work)
        self._begun.get()

    def wait(self) -> None:
        """Until it is done. Raises what it raised."""
        fault = self._ended.get()
        self.busy = False
        if fault is not None:
            raise fault

    def __del__(self) -> None:
        self._asked.put(None)


def _work(
    asked: "SimpleQueue[Work | None]", begun: "SimpleQueue[None]", ended: "SimpleQueue[BaseException | None]"
) -> None:
    while (work := asked.get()) is not None:
        begun.put(None)
        fault = None
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it
            fault = error
        del work  # and what it holds
        ended.put(fault)
        del fault

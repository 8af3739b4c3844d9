"""The private folder where a server's processes meet; removed by whoever is left when the server was killed."""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "headrace-"
LOCK = "owner.lock"


class Folder:
    """A folder of mode 0700 that is this process's as long as it lives.

    The owner holds a lock on a file in it, which the system lets go of however the owner ends. Where both it and its
    engine were killed, the next server of the same user finds the lock free and removes what they left.
    """

    def __init__(self) -> None:
        sweep()
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        unborn = (
            self.path / "unborn"
        )  # it gets its name when it is locked, so that nobody finds it free before
        self._lock = os.open(unborn, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unborn.rename(self.path / LOCK)

    def remove(self) -> None:
        """Remove it. Idempotent."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def sweep() -> None:
    """Remove the folders of this user's servers that are gone."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            if folder.lstat().st_uid != os.geteuid():
                continue
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue  # it is no server's, or it has just been made or removed
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)  # which leaves alone what a link leads to
        except BlockingIOError:
            continue  # its server lives
        finally:
            os.close(lock)

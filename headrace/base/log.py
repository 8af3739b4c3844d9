"""One logger, to standard error: standard output belongs to answers."""

import logging
import sys
from typing import Literal

Level = Literal["debug", "info", "warning", "error"]

LOG = logging.getLogger("headrace")
LOG.addHandler(logging.NullHandler())


def setup(level: Level = "warning") -> logging.Logger:
    """Send what the package logs from `level` upward to standard error; a second call replaces the first.

    Programs call this; the library never does, so that an application's own logging stays as it is.
    """
    for old in [h for h in LOG.handlers if h.name == LOG.name]:
        LOG.removeHandler(old)
    handler = logging.StreamHandler(sys.stderr)
    handler.name = LOG.name
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    LOG.addHandler(handler)
    LOG.setLevel(level.upper())
    LOG.propagate = False
    return LOG

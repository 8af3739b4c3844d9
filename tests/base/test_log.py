"""The package's logger speaks on standard error, and only when a program asks for it."""

import logging

import pytest

from headrace.base import log


@pytest.fixture(autouse=True)
def restored():
    before = (log.LOG.handlers[:], log.LOG.level, log.LOG.propagate)
    yield
    log.LOG.handlers[:], log.LOG.level, log.LOG.propagate = before


def test_setup_writes_to_standard_error_once(capsys: pytest.CaptureFixture[str]):
    log.setup("info")
    logger = log.setup("info")
    logger.info("three blocks free")
    logger.debug("not shown")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("INFO three blocks free") == 1
    assert "not shown" not in shown.err


def test_parts_of_the_package_share_it(capsys: pytest.CaptureFixture[str]):
    log.setup()
    logging.getLogger("headrace.engine").warning("slow")
    logging.getLogger("headrace.engine").info("quiet")
    assert "WARNING slow" in (err := capsys.readouterr().err)
    assert "quiet" not in err

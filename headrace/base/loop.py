"""The event loop of our processes."""

import asyncio


def runner() -> asyncio.Runner:
    """Of uvloop's, where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)

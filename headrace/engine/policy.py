"""Order of the waiting line, and who gives way when memory is short: a sort key per policy."""

from collections.abc import Callable

from headrace.base.errors import UnknownName
from headrace.engine.sequence import Sequence

Key = tuple[int, int]
"""(class, order): a lower class goes first and may push out a higher one; order settles the rest."""


def arrival(seq: Sequence) -> Key:
    """First come, first served."""
    return (0, seq.order)


def priority(seq: Sequence) -> Key:
    """Lower `priority` first; equals in order of arrival."""
    return (seq.request.priority, seq.order)


POLICIES: dict[str, Callable[[Sequence], Key]] = {"arrival": arrival, "priority": priority}


def policy(name: str) -> Callable[[Sequence], Key]:
    """The policy called `name`. Raises UnknownName."""
    if name not in POLICIES:
        raise UnknownName.among("policy", name, list(POLICIES), param="schedule.policy")
    return POLICIES[name]

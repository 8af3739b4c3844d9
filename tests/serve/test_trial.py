"""Which request kills engines."""

from hypothesis import given
from hypothesis import strategies as st

from headrace.serve.trial import GUILTY, SUSPECT, Trial


def test_everybody_goes_on_after_a_first_death():
    trial = Trial()
    assert trial.mourn(["a", "b"]) is None
    assert trial.release(["a", "b", "c"]) == ["a", "b", "c"]


def test_suspects_go_on_one_after_another():
    trial = Trial()
    for _ in range(SUSPECT):
        trial.mourn(["a", "b"])
        first = trial.release(["a", "b", "c"])
    assert first == ["c", "a"]
    assert trial.acquit("c") == []
    assert trial.acquit("a") == ["b"]
    assert trial.forget("b") == []
    trial.mourn(["a", "c"])
    assert trial.release(["a", "c"]) == ["a", "c"]


@given(st.integers(1, 12), st.data())
def test_the_guilty_one_is_found_and_nobody_else(count: int, data: st.DataObject):
    ids = [str(n) for n in range(count)]
    guilty = data.draw(st.sampled_from(ids))
    trial, found, deaths = Trial(), None, 0
    while found is None:
        deaths += 1
        assert deaths <= SUSPECT + GUILTY
        found = trial.mourn(ids)
        running = trial.release(ids)
        while found is None and guilty not in running:
            assert trial.on_trial is not None, "somebody is never sent"
            running = trial.acquit(trial.on_trial)
    assert found == guilty

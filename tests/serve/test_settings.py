"""The server's knobs."""

import pytest

from headrace.serve import settings


@pytest.mark.parametrize(("cores", "fronts"), [(1, 1), (2, 1), (7, 1), (8, 2), (16, 4), (128, 4)])
def test_front_processes_suit_the_cores_unless_their_number_is_given(
    monkeypatch: pytest.MonkeyPatch, cores: int, fronts: int
):
    monkeypatch.setattr(settings, "cores", lambda: cores)
    assert settings.Serve().fronts == fronts
    assert settings.Serve(workers=3).fronts == 3

"""The server's knobs."""

import pytest

from headrace.base.config import Schedule
from headrace.base.errors import Refused
from headrace.serve import settings


@pytest.mark.parametrize(("cores", "fronts"), [(1, 1), (2, 1), (7, 1), (8, 2), (16, 4), (128, 4)])
def test_front_processes_suit_the_cores_unless_their_number_is_given(
    monkeypatch: pytest.MonkeyPatch, cores: int, fronts: int
):
    monkeypatch.setattr(settings, "cores", lambda: cores)
    assert settings.Serve().fronts == fronts
    assert settings.Serve(workers=3).fronts == 3


def test_what_is_never_restarted_need_not_keep_bits():
    def engine(restarts: int, asked: bool | None) -> bool | None:
        serve, schedule = settings.Serve(restarts=restarts), Schedule(deterministic=asked)
        return settings.ServeConfig(serve=serve, schedule=schedule).engine.schedule.deterministic

    assert engine(1, None) is None
    assert engine(0, None) is False
    assert engine(0, True) is True


@pytest.mark.parametrize("names", ["", " , "])
def test_no_name_for_the_model_is_refused(names: str):
    with pytest.raises(Refused, match="expected at least one name"):
        settings.Serve(served_model_name=names)


@pytest.mark.parametrize(
    "origins", ["", "*x", "example.com", "https://example.com/", "https://A.example", "*, x"]
)
def test_an_origin_that_no_browser_sends_is_refused(origins: str):
    with pytest.raises(Refused, match=r"expected .* origins"):
        settings.Serve(cors=origins)


@pytest.mark.parametrize(
    "origins", ["*", "null", "http://localhost:3000, https://[::1]:8, moz-extension://a-b"]
)
def test_origins_may_be_any_that_browsers_send(origins: str):
    assert settings.Serve(cors=origins).cors == origins

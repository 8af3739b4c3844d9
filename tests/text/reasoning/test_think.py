"""Whether a prompt ends inside a thought."""

import pytest

from headrace.text.reasoning.think import FORMATS


@pytest.mark.parametrize("think", FORMATS, ids=lambda think: think.opens)
def test_a_thought_that_the_prompt_begins(think):
    assert think.begun(f"assistant\n{think.opens}\n")
    assert not think.begun(f"assistant\n{think.opens}\n\n{think.closes}\n\n")
    assert not think.begun("assistant\n")
    assert not think.begun(f"what is {think.opens}?\nassistant\n")
    assert think.begun(f"{think.opens}so", continued=True)
    assert not think.begun(f"{think.opens}so{think.closes}it", continued=True)


def test_no_template_fits_two_kinds():
    for think in FORMATS:
        source = f"{{{{ '{think.opens}' }}}} ... {{{{ '{think.closes}' }}}}"
        assert [other for other in FORMATS if other.fits(source)] == [think]

import asyncio

from headrace.base.loop import runner


def test_a_loop_runs_what_it_is_given():
    with runner() as loop:
        assert loop.run(asyncio.sleep(0, 7)) == 7

"""Whether memory stays flat: `python -m tests.serve.soak [scripted | tiny]` sends 20,000 short requests."""

import asyncio
import json
import sys
import tempfile
from pathlib import Path

from headrace.bench.frontend import write_tokenizer
from tests import tiny as models
from tests.serve.reading import posted
from tests.serve.test_run import Server, server

REQUESTS, CLIENTS, EVERY = 20_000, 32, 1000


def resident(pid: int) -> float:
    """MiB of memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20


async def client(port: int, numbers) -> None:
    """One request after another: whole, streamed, refused, and some that are left in the middle."""
    for n in numbers:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = {"prompt": f"request {n}", "max_tokens": 4, "temperature": n % 2, "stream": n % 3 == 0}
        body |= {"max_tokens": 50} if n % 10 == 0 else {}
        body |= {"temperature": "hot"} if n % 17 == 0 else {}
        writer.write(posted(json.dumps(body).encode(), f"X-Request-Id: soak-{n}", "Connection: close"))
        if n % 10 == 0:
            await reader.read(1)
        else:
            got = await reader.read()
            while more := await reader.read():
                got += more
            assert b"HTTP/1.1 400" in got if n % 17 == 0 else b"HTTP/1.1 200" in got, got
        writer.close()


async def soak(at: Server) -> None:
    numbers = iter(range(REQUESTS))
    tasks = [asyncio.create_task(client(at.port, numbers)) for _ in range(CLIENTS)]
    print("requests   front MiB   engine MiB", flush=True)  # noqa: T201
    rows: list[tuple[int, float, float]] = []

    def look() -> None:
        rows.append((REQUESTS - numbers.__length_hint__(), resident(at.process.pid), resident(at.engine)))
        print("{:8d}   {:9.1f}   {:10.1f}".format(*rows[-1]), flush=True)  # noqa: T201

    look()
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0.05)
        if REQUESTS - numbers.__length_hint__() - rows[-1][0] >= EVERY:
            look()
    await asyncio.gather(*tasks)
    look()
    late = [row for row in rows if row[0] >= REQUESTS // 4]
    for name, column in (("front", 1), ("engine", 2)):
        slope = (late[-1][column] - late[0][column]) / max(late[-1][0] - late[0][0], 1) * 2**20
        print(f"{name}: {slope:.1f} bytes per request over the last three quarters")  # noqa: T201


def main(tiny: bool) -> None:
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room) / "model"
        if tiny:
            models.folder(folder)
        else:
            folder.mkdir()
            write_tokenizer(folder)
        few = {"schedule__rows": 32, "memory__kv_blocks": 200, "model__threads": 1, "memory__share": 0.1}
        with server(folder, None if tiny else 0.0, serve__workers=1, **few) as at:
            asyncio.run(soak(at))


if __name__ == "__main__":
    main("tiny" in sys.argv)

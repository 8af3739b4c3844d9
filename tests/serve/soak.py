"""Whether memory stays flat: `python -m tests.serve.soak [scripted | tiny]` sends 20,000 short requests."""

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path

SCRIPT = """
import json, sys
from headrace.base.config import replace_dotted
from headrace.serve.settings import ServeConfig
from headrace.serve.supervisor import HOST, Supervisor
told = json.loads(sys.argv[1])
config = replace_dotted(ServeConfig(), told["knobs"])
words = HOST if told["tiny"] else [sys.executable, "-m", "headrace.serve.scripted"]
supervisor = Supervisor(config, words)
from headrace.serve.run import serve
serve(config, supervisor, lambda facts, url: print(supervisor.engine.pid, url, flush=True))
"""
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
        sent = json.dumps(body)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: soak-{n}\r\nConnection: close\r\n"
        writer.write(
            f"{head}Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n{sent}".encode()
        )
        if n % 10 == 0:
            await reader.read(1)
        else:
            got = await reader.read()
            while more := await reader.read():
                got += more
            assert b"HTTP/1.1 400" in got if n % 17 == 0 else b"HTTP/1.1 200" in got, got
        writer.close()


async def soak(tiny: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if tiny:
            from tests import tiny as models

            path = models.folder(Path(folder) / "model")
        else:
            from headrace.bench.frontend import write_tokenizer

            path = Path(folder)
            write_tokenizer(path)
        knobs = {"model.path": str(path), "serve.port": 0, "schedule.rows": 32, "memory.kv_blocks": 200}
        knobs |= {"serve.request_log": "off", "model.threads": 1, "memory.share": 0.1}
        words = [sys.executable, "-c", SCRIPT, json.dumps({"tiny": tiny, "knobs": knobs})]
        front = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert front.stdout is not None
        engine, url = front.stdout.readline().split()
        port = int(url.rpartition(":")[2])
        numbers = iter(range(REQUESTS))
        tasks = [asyncio.create_task(client(port, numbers)) for _ in range(CLIENTS)]
        print("requests   front MiB   engine MiB", flush=True)  # noqa: T201
        rows: list[tuple[int, float, float]] = []
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0.05)
            done = numbers.__length_hint__()
            if not rows or (REQUESTS - done) - rows[-1][0] >= EVERY:
                rows.append((REQUESTS - done, resident(front.pid), resident(int(engine))))
                print("{:8d}   {:9.1f}   {:10.1f}".format(*rows[-1]), flush=True)  # noqa: T201
        await asyncio.gather(*tasks)
        rows.append((REQUESTS, resident(front.pid), resident(int(engine))))
        late = [row for row in rows if row[0] >= REQUESTS // 4]
        for name, column in (("front", 1), ("engine", 2)):
            slope = (late[-1][column] - late[0][column]) / (late[-1][0] - late[0][0]) * 2**20
            print(f"{name}: {slope:.1f} bytes per request over the last three quarters")  # noqa: T201
        front.terminate()
        front.wait()


if __name__ == "__main__":
    asyncio.run(soak("tiny" in sys.argv))

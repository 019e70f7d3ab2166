#!/usr/bin/env python3
"""What it costs to follow a fleet: `python3 tests/e2e/fleet_cost.py --kvwise target/release/kvwise`.

Serves a real vLLM page (58 kB) with moving counters on many ports, over connections that stay open as vLLM keeps them, and
runs `kvwise attach` and `kvwise attach --export` against all of them. Prints the share of one core and the largest
resident memory, and fails above the limits (50 servers a second: 5 % of a core, 100 MB).
"""

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
PAGE = os.path.join(ROOT, "crates", "io", "testdata", "vllm_0.32.0_metrics.txt")
VERSIONS = 32


def pages():
    """The page at several moments: every counter and bucket has grown."""
    with open(PAGE) as file:
        text = file.read()

    def at(moment):
        def grown(match):
            return "%s %.1f" % (match.group(1), float(match.group(2)) * (1 + moment / 100.0) + moment)
        grow = re.sub(r"(?m)^(vllm:\S*(?:_total|_bucket|_count|_sum)\{[^\n]*\}) ([0-9.e+]+)$", grown, text)
        body = grow.encode()
        return b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    return [at(i) for i in range(VERSIONS)]


async def serve(count, ready):
    answers, begin, ports = pages(), time.time(), []

    async def handle(reader, writer):
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(answers[min(int(time.time() - begin), VERSIONS - 1)])
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    servers = [await asyncio.start_server(handle, "127.0.0.1", 0) for _ in range(count)]
    ports.extend(s.sockets[0].getsockname()[1] for s in servers)
    ready(ports)
    await asyncio.Event().wait()


def cost(command, seconds):
    """CPU seconds by second, and the largest resident memory in MB."""
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit("%s ended with %d" % (" ".join(command[:3]), status))
    return (usage.ru_utime + usage.ru_stime) / seconds, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kvwise", required=True)
    parser.add_argument("--servers", type=int, default=50)
    parser.add_argument("--seconds", type=int, default=30)
    arguments = parser.parse_args()
    ready, ports = threading.Event(), []

    def told(found):
        ports.extend(found)
        ready.set()

    threading.Thread(target=lambda: asyncio.run(serve(arguments.servers, told)), daemon=True).start()
    ready.wait(30)
    urls = ["http://127.0.0.1:%d" % port for port in ports]
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        common = ["--interval", "1s", "--duration", "%ds" % arguments.seconds, "-q"]
        for what, more in (("attach", ["-o", os.path.join(folder, "recording")]), ("attach --export", ["--export", "127.0.0.1:0"])):
            cpu, memory = cost([arguments.kvwise, "attach"] + urls + common + more, arguments.seconds)
            good = cpu < 0.05 and memory < 100
            failed |= not good
            print("%-9s %-16s %d servers: %.2f %% of a core, %.0f MB" % ("ok" if good else "TOO MUCH", what, len(urls), cpu * 100, memory))
        size = sum(os.path.getsize(os.path.join(folder, "recording", f)) for f in os.listdir(os.path.join(folder, "recording")))
        print("          recording: %.0f kB a server and minute" % (size / 1000 / len(urls) / (arguments.seconds / 60)))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

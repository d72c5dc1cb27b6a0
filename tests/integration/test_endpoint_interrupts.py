"""Ctrl-C at any moment: the client lets go, within moments, and never locks up."""

from __future__ import annotations

import subprocess
import sys

# Interrupts at random moments of as many askings, in a process of its own that a time limit ends.
CHILD = """
import random, signal, sys, time
from consilience.models.endpoint import Endpoint, EndpointSettings, Request
from consilience.models.endpoint.answer import read_choice
from consilience.models.endpoint.server import Said, Server
from consilience.records import Message

def ask(self, request, n):
    time.sleep(0.0005)
    return Said("m", [read_choice({"message": {"content": "x"}}, usage={"prompt_tokens": 1, "completion_tokens": 1})])

def interrupt(*_):
    raise KeyboardInterrupt

Server.ask = ask
sys.setswitchinterval(1e-5)  # threads get in each other's way
signal.signal(signal.SIGALRM, interrupt)
moments = random.Random(0)
requests = [Request(messages=(Message("user", str(i)),), max_tokens=1) for i in range(60)]
interrupted = 0
for _ in range(400):
    endpoint = Endpoint(EndpointSettings(url="http://127.0.0.1:1/v1", model="m", concurrency=4))
    try:
        signal.setitimer(signal.ITIMER_REAL, moments.uniform(0.001, 0.02))
        endpoint.ask(requests)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        interrupted += 1
    endpoint.close()
print(interrupted)
"""


def test_interrupts_at_four_hundred_moments() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 100

# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Ctrl-C stops long native loops, not their end."""

import signal
import subprocess
import sys
import time

import pytest

import reidfast

pytestmark = pytest.mark.skipif(
    not reidfast.ops._library.build_info()["module"], reason="needs the native library and reidfast._C"
)

# Each takes ten seconds and more on two cores.
CALLS = {
    "jaccard_graph": "jaccard_graph(x)",
    "rerank": "rerank(x[:2000], x[2000:])",
    "rank": "rank(x[:20000], x[20000:], ids[:20000], ids[20000:])",
}
SOURCE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts a job behind it ignores Ctrl-C
import torch
from reidfast.evaluation import jaccard_graph, rank, rerank
x = torch.randn(40000, 1024, generator=torch.Generator().manual_seed(0))
ids = torch.arange(40000) % 50
print("started", flush=True)
{call}
print("finished")
"""


@pytest.mark.parametrize("name", CALLS)
def test_ctrl_c_ends_a_native_loop(name):
    command = [sys.executable, "-c", SOURCE.format(call=CALLS[name])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "started\n"
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    output, errors = process.communicate(timeout=60)
    seconds = time.monotonic() - begin
    assert process.returncode != 0 and "finished" not in output and "KeyboardInterrupt" in errors
    assert seconds < 5, f"expected the end within a second, or a few on a crowded machine; got {seconds:.1f} s"

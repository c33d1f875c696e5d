# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Peak memory of a call on the CPU, as the operating system counts it."""

from __future__ import annotations

import subprocess
import sys
import textwrap


def peak_memory(setup: str, call: str, *, threads: int = 2) -> int:
    """Bytes by which ``call`` raises the high-water mark of resident memory over what ``setup`` left.

    Args:
        setup: Python source that makes the inputs; torch and reidfast are imported, anything else is to be imported
            there.
        call: Python source to measure.
        threads: CPU threads of torch.

    Notes:
        Linux only: the mark is reset through /proc/self/clear_refs where the kernel allows it, otherwise the highest so
        far counts.
    """
    source = f"""
import gc, torch, reidfast
torch.set_num_threads({threads})
{textwrap.dedent(setup)}
def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
gc.collect()
try:
    with open("/proc/self/clear_refs", "w") as clear: clear.write("5")
except OSError: pass
before = status("VmRSS:")
{textwrap.dedent(call)}
print("PEAK", max(0, status("VmHWM:") - before))
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"peak_memory: the measured process failed:\n{done.stderr}")
    return int(done.stdout.rsplit("PEAK", 1)[1])

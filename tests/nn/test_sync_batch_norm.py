# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Batch norm and gathered losses over several processes: what one process with the whole batch computes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from reidfast.losses import TripletLoss
from reidfast.nn import SyncBatchNorm, convert_sync_batch_norm, gather_rows

WORKER = """
import os, sys, torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from reidfast.losses import TripletLoss
from reidfast.nn import convert_sync_batch_norm, gather_rows
folder, me, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=me, world_size=size)
case = torch.load(f"{folder}/case.pt", weights_only=True)
out = {}

def norm(kind, affine, x, up, momentum, dtype=torch.float64):
    layer = kind(x.shape[1], affine=affine, momentum=momentum).to(dtype)
    if affine:
        layer.load_state_dict(case["norm"], strict=False)
    layer = convert_sync_batch_norm(nn.Sequential(layer, nn.ReLU(inplace=True)))
    grads = []
    for _ in range(2):
        x = x.detach().requires_grad_()
        y = layer(x)
        (y * up).sum().backward()
    return {"y": y.detach(), "x": x.grad} | {k: v for k, v in layer.state_dict().items()}

cuts = case["cuts"]
mine = slice(cuts[me], cuts[me + 1])
for name, kind, affine, momentum in (("map", nn.BatchNorm2d, True, 0.1), ("plain", nn.BatchNorm2d, False, None)):
    out[name] = norm(kind, affine, case["maps"][mine], case["up"][mine], momentum)
out["row"] = norm(nn.BatchNorm1d, True, case["rows"][mine], case["up_rows"][mine], 0.1)
out["half"] = norm(nn.BatchNorm1d, True, case["rows"][mine].bfloat16(), case["up_rows"][mine].bfloat16(), 0.1,
                   torch.float32)["y"]

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, 4)).double()
model = DistributedDataParallel(convert_sync_batch_norm(model))
half = slice(me * 8, me * 8 + 8)
features = model(case["images"][half])
loss = TripletLoss(0.3)(gather_rows(features), gather_rows(case["pids"][half]))
loss.backward()
out["loss"], out["grads"] = loss.detach(), {n: p.grad for n, p in model.module.named_parameters()}
torch.save(out, f"{folder}/out{me}.pt")
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # gloo's threads may abort an interpreter that is shutting down
"""


def whole_norm(kind, affine, x, up, momentum, state):
    layer = kind(x.shape[1], affine=affine, momentum=momentum).double()
    if affine:
        layer.load_state_dict(state, strict=False)
    layer = nn.Sequential(layer, nn.ReLU(inplace=True))
    for _ in range(2):
        x = x.detach().requires_grad_()
        y = layer(x)
        (y * up).sum().backward()
    return {"y": y.detach(), "x": x.grad} | dict(layer.state_dict())


@pytest.mark.network
def test_two_processes_equal_one(tmp_path):
    torch.manual_seed(1)
    double = torch.float64
    case = {
        "cuts": [0, 5, 16],  # uneven
        "maps": torch.randn(16, 3, 4, 2, dtype=double) * 3 + 100,
        "up": torch.randn(16, 3, 4, 2, dtype=double),
        "rows": torch.randn(16, 3, dtype=double),
        "up_rows": torch.randn(16, 3, dtype=double),
        "norm": {"weight": torch.tensor([1.5, -0.5, 2.0]), "bias": torch.tensor([0.1, 0.2, -0.3])},
        "images": torch.randn(16, 6, dtype=double),
        "pids": torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]),
    }
    torch.save(case, tmp_path / "case.pt")
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), str(i), "2"], stderr=subprocess.PIPE)
        for i in range(2)
    ]
    for worker in workers:
        _, complaint = worker.communicate(timeout=240)
        assert worker.returncode == 0, complaint.decode()
    first, second = (torch.load(tmp_path / f"out{i}.pt", weights_only=True) for i in range(2))

    expected = {
        "map": whole_norm(nn.BatchNorm2d, True, case["maps"], case["up"], 0.1, case["norm"]),
        "plain": whole_norm(nn.BatchNorm2d, False, case["maps"], case["up"], None, case["norm"]),
        "row": whole_norm(nn.BatchNorm1d, True, case["rows"], case["up_rows"], 0.1, case["norm"]),
    }
    for name, whole in expected.items():
        for key, value in whole.items():
            joined = torch.cat([first[name][key], second[name][key]]) if key in ("y", "x") else first[name][key]
            torch.testing.assert_close(joined, value, rtol=1e-9, atol=1e-11, msg=f"{name} {key}")
            if key not in ("y", "x"):
                assert torch.equal(first[name][key], second[name][key])  # the same bits everywhere
    half = torch.cat([first["half"], second["half"]])
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), expected["row"]["y"], rtol=0.02, atol=0.05)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).double()
    loss = TripletLoss(0.3)(model(case["images"]), case["pids"])
    loss.backward()
    for result in (first, second):
        torch.testing.assert_close(result["loss"], loss.detach(), rtol=1e-12, atol=0)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(result["grads"][name], parameter.grad, rtol=1e-9, atol=1e-12, msg=name)


def test_one_process_is_plain_batch_norm():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4 * 6)))
    plain[1].bias.requires_grad_(False)
    again = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4 * 6)))
    again[1].bias.requires_grad_(False)
    again.load_state_dict(plain.state_dict())
    parameters = list(again.parameters())
    synchronised = convert_sync_batch_norm(again)
    assert synchronised is again and isinstance(again[1], SyncBatchNorm) and isinstance(again[2][1], SyncBatchNorm)
    assert all(a is b for a, b in zip(parameters, again.parameters(), strict=True))
    assert not again[1].bias.requires_grad and list(again.state_dict()) == list(plain.state_dict())
    x = torch.randn(5, 3, 3, 2)
    assert torch.equal(plain(x), again(x))
    plain.eval(), again.eval()
    assert torch.equal(plain(x), again(x))
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), again.state_dict().values(), strict=True))
    assert isinstance(convert_sync_batch_norm(nn.BatchNorm1d(2).eval()), SyncBatchNorm)
    assert gather_rows(x) is x
    with pytest.raises(ValueError, match=r"SyncBatchNorm: expected \(B, 4, ...\), got \(5, 3, 3, 2\)"):
        again[1](x)


def test_a_gathered_loss_is_the_loss_here():
    features = torch.randn(4, 2, requires_grad=True)
    TripletLoss()(gather_rows(features), torch.tensor([0, 0, 1, 1])).backward()
    assert features.grad is not None

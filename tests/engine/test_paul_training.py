# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""PAUL and cluster-contrast in training: on rendered people, from one labelled world to another without labels."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_settings import SMALL_BACKBONE, parse, run
from torch import nn

pytest.importorskip("lightning", reason="needs the extra [train]")
pytest.importorskip("jsonargparse", reason="needs the extra [train]")

from reidfast.data import load_dataset
from reidfast.engine.methods import find_method
from reidfast.engine.training import leave_processes
from reidfast.models import create_model, read_weights
from reidfast.nn import FixedPatches

COMMON = [
    "--data.name=synthetic",
    "--data.height=64",
    "--data.width=32",
    f"--model.backbone={SMALL_BACKBONE}",
    "--model.options={}",
    "--accelerator=cpu",
]
NET = ["--model.dim=32", "--model.embedding=16", "--model.hidden=32"]


def world(seed, **more):
    spec = {"ids": 60, "cameras": 3, "images": 3, "height": 64, "width": 32, "seed": seed, "difficulty": 0.5, **more}
    return f"--data.options={json.dumps(spec)}"


@pytest.fixture(scope="module", autouse=True)
def caches(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REIDFAST_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A short supervised pre-training in world 1."""
    out = tmp_path_factory.mktemp("source")
    arguments = [*COMMON, *NET, world(1), "--data.batch=16", "--optim.lr=0.05", "--optim.backbone_factor=1"]
    arguments += ["--optim.epochs=8", "--optim.generator_lr=0.001", "--optim.generator_epochs=[3,9]"]
    metrics = run("paul-source", [*arguments, "--evaluate_every=8", f"--out={out}"])
    return out, metrics


def adapt(out, source, *more, method="paul"):
    arguments = [*COMMON, *NET, world(2, difficulty=0.7), f"--source_checkpoint={source}", "--data.batch=20"]
    arguments += ["--loss.k=5", "--optim.lr=0.01", "--optim.epochs=4", "--evaluate_every=4", f"--out={out}"]
    return run(method, [*arguments, *more])


def state(out):
    return torch.load(Path(out) / "last.ckpt", weights_only=False)["state_dict"]


def test_settings_of_the_published_code_and_of_the_paper():
    code, paper = parse("paul", []), parse("paul-paper", [])
    assert (code.loss.scale, code.loss.k, code.loss.pedal, code.loss.ipfl) == (15.0, 10, 2.0, 1.0)
    assert (code.optim.lr, code.optim.momentum, code.optim.nesterov, code.optim.epochs) == (1e-4, 0.9, False, 60)
    changed = {"loss.scale": 30.0, "loss.ipfl_embedding": "concat", "data.surrogates": "one_of"}
    for section in ("data", "model", "loss", "optim"):
        ours, theirs = vars(getattr(code, section)), vars(getattr(paper, section))
        for name, value in theirs.items():
            assert value == changed.get(f"{section}.{name}", ours[name]), name


def test_pretraining_learns_its_source_and_where_to_look(source):
    out, metrics = source
    assert metrics["history"][-1]["mAP"] > metrics["before"]["mAP"] + 0.15
    made = read_weights(out / "weights.safetensors")
    assert bool(made["generator.fc2.weight"].any()) and len(made["class_weight"][0]) == 30


def test_adaptation_improves_on_the_source_network(source, tmp_path):
    metrics = adapt(tmp_path / "run", source[0])  # +2 to +4 points, with the order of the processor's sums
    assert metrics["history"][-1]["mAP"] > metrics["before"]["mAP"] + 0.01
    before, after = read_weights(source[0] / "weights.safetensors"), read_weights(tmp_path / "run/weights.safetensors")
    frozen = [key for key in after if key.startswith(("embed_", "generator.")) and "running" not in key]
    assert all(torch.equal(before[key], after[key]) for key in frozen if "num_batches" not in key)
    assert not torch.equal(before["backbone.layers.0.weight"], after["backbone.layers.0.weight"])
    assert not torch.equal(
        before["generator.bn.running_mean"], after["generator.bn.running_mean"]
    )  # runs in train mode


@pytest.mark.filterwarnings("ignore:paul. adapting a network of random weights")
def test_the_losses_teach_a_random_network_more_than_its_batch_norms_learn(tmp_path):
    found = {}
    for name, rate in (("adabn", 0), ("paul", 0.01)):
        arguments = [*COMMON, world(2, difficulty=0.3), "--data.batch=30", "--loss.k=5", "--evaluate_every=4"]
        arguments += ["--loss.ipfl_embedding=concat", f"--optim.lr={rate}", "--optim.epochs=4"]
        found[name] = run("paul", [*arguments, f"--out={tmp_path / name}"])
    first = found["adabn"]["before"]["mAP"]
    assert first == found["paul"]["before"]["mAP"]
    assert found["paul"]["history"][-1]["mAP"] > max(first, found["adabn"]["history"][-1]["mAP"]) + 0.03


def test_the_network_is_what_the_card_of_the_source_says(source, tmp_path):
    arguments = [*COMMON[:3], world(2, difficulty=0.7), f"--source-checkpoint={source[0]}", "--model.patches=stripes"]
    config = parse("paul", arguments)  # the default model is a ResNet-50 of six branches of 256
    task, _ = find_method("paul").build(config, find_method("paul").load(config))
    assert task.model.dim == 32 and isinstance(task.model.generator, FixedPatches)
    again = create_model(task.card()["model"]["name"], **task.card()["model"]["options"])
    again.load_state_dict(task.model.state_dict())
    with pytest.raises(ValueError, match="wrong shape|missing"):  # without its card, the settings have to fit
        (tmp_path / "weights.safetensors").write_bytes((source[0] / "weights.safetensors").read_bytes())
        config.source_checkpoint = str(tmp_path / "weights.safetensors")
        config.model.backbone = SMALL_BACKBONE
        config.model.options = {}
        find_method("paul").build(config, find_method("paul").load(config))


def test_rate_zero_moves_batch_norm_statistics_only(source, tmp_path):
    adapt(tmp_path / "run", source[0], "--optim.lr=0", "--optim.epochs=1", "--evaluate_every=1")
    before, after = read_weights(source[0] / "weights.safetensors"), read_weights(tmp_path / "run/weights.safetensors")
    moved = {key.split(".")[-1] for key in after if not torch.equal(before[key], after[key])}
    assert moved == {"running_mean", "running_var", "num_batches_tracked"}


def test_resumed_equals_uninterrupted(source, tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    adapt(straight, source[0], "--optim.epochs=3", "--evaluate_every=1")
    adapt(broken, source[0], "--optim.epochs=1", "--evaluate_every=1")
    adapt(broken, source[0], "--optim.epochs=3", "--evaluate_every=1", "--resume=true")
    first, second = state(straight), state(broken)
    assert {"memory.bank", "memory.filled", "centres.bank", "centres.filled"} <= first.keys()
    assert bool(first["centres.filled"].all()) and bool(first["memory.filled"].all())
    assert all(torch.equal(first[key], second[key]) for key in first)
    histories = [json.loads((out / "metrics.json").read_text())["history"] for out in (straight, broken)]
    assert histories[0] == histories[1]


def test_step_is_the_published_one(source, tmp_path):
    """Update before loss, surrogates outside the bank, the mean of both views in the centres, as in PAUL's code."""
    arguments = [*COMMON, *NET, world(2, difficulty=0.7), f"--source-checkpoint={source[0]}", "--data.batch=20"]
    config = parse("paul", [*arguments, "--loss.k=5"])
    method = find_method("paul")
    task, module = method.build(config, method.load(config))
    task.log_dict = lambda *args, **options: None
    task.fill_memory(module)
    bank = task.memory.bank.clone()
    views, _, _, rows = next(iter(module.loader(0)))
    task.centres.write(rows[:7], torch.randn(7, task.centres.bank.shape[1]))
    centres, known = task.centres.bank.clone(), task.centres.filled.clone()
    saved = {key: value.clone() for key, value in task.model.state_dict().items()}
    loss = task.training_step((views, None, None, rows), 0)
    loss.backward()

    task.model.load_state_dict(saved)
    x = task.model(views.flatten(0, 1)).features
    v = nn.functional.normalize(task.model.embed_weight, dim=2)
    pedal, e = [], torch.cat([x[m] @ v[m].T for m in range(6)], 1)
    for m in range(6):
        bank[m, rows] = 0.9 * bank[m, rows] + 0.1 * x[m, ::2].detach()
        for i, own in enumerate(rows.tolist()):
            d = (x[m, 2 * i] - bank[m]).square().sum(1)[torch.arange(bank.shape[1]) != own]
            pedal.append((-15 * d).logsumexp(0) - (-15 * d.sort().values[:5]).logsumexp(0))
    means = e.detach().view(-1, 2, e.shape[1]).mean(1)
    centres[rows] = torch.where(known[rows, None], 0.9 * centres[rows] + 0.1 * means, means)
    a, ipfl = centres[rows], []
    for f, u in zip(e, torch.arange(len(rows)).repeat_interleave(2).tolist(), strict=True):
        d, negative = (f - a).norm(dim=1), 0
        for candidate in [c for c in d.argsort().tolist() if c != u][:15]:
            if u not in (a[candidate] - a).norm(dim=1).argsort()[:3].tolist():
                negative = d[candidate]
                break
        ipfl.append((2 + d[u] - negative).clamp(min=0))
    want = torch.stack(ipfl).mean() + 2 * torch.stack(pedal).mean()
    torch.testing.assert_close(loss, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(task.memory.bank[:, rows], bank[:, rows], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(task.centres.bank[rows], a, rtol=1e-4, atol=1e-5)
    ours = task.model.backbone.layers[0].weight.grad.clone()
    theirs = torch.autograd.grad(want, task.model.backbone.layers[0].weight)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize(
    "more,words",
    [
        (["--model.embedding=null"], "expected model.embedding with loss.ipfl_embedding official"),
        (["--loss.k=600"], "loss.k of at most"),
        (["--model.frozen=[layers]", "--model.branches=backbone"], "use branches='new'"),
    ],
)
def test_rejects(more, words):
    config = parse("paul", [*COMMON, world(2, difficulty=0.7), *more])
    method = find_method("paul")
    with pytest.raises(ValueError, match=words):
        method.build(config, method.load(config))


CLUSTERS = [*COMMON, world(2, difficulty=0.3), "--data.ids=8", "--data.images=4", "--data.pad=2", "--loss.k1=10"]
CLUSTERS += ["--loss.k2=3", "--loss.eps=0.6", "--data.steps=20"]


def test_cluster_contrast_learns_from_its_own_clusters(tmp_path):
    more = ["--optim.epochs=4", "--evaluate_every=4", f"--out={tmp_path / 'run'}"]
    metrics = run("cluster_contrast", [*CLUSTERS, *more])
    assert metrics["history"][-1]["mAP"] > metrics["before"]["mAP"] + 0.02


def test_step_of_cluster_contrast():
    method, config = find_method("cluster_contrast"), parse("cluster_contrast", CLUSTERS)
    task, module = method.build(config, method.load(config))
    logged = {}
    task.log_dict = lambda values, **options: logged.update(values)
    images, labels, _, rows = next(iter(module.loader(0)))
    assert bool((labels == torch.from_numpy(module.labels)[rows]).all()) and int(labels.min()) >= 0
    features = task.embed(module.data.train)
    first = features[torch.from_numpy(module.labels) == 0].mean(0)
    torch.testing.assert_close(task._centres[0], nn.functional.normalize(first, dim=0), rtol=1e-4, atol=1e-5)
    centres = task._centres.clone()
    saved = {key: value.clone() for key, value in task.model.state_dict().items()}
    loss = task.training_step((images, labels, None, rows), 0)
    assert torch.equal(task._centres, centres)  # the loss comes before the update
    task.on_after_backward()
    task.model.load_state_dict(saved)
    x = task.model(images)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(x @ centres.T / 0.05, labels), rtol=1e-4, atol=1e-5)
    for value, label in zip(x.detach(), labels.tolist(), strict=True):
        centres[label] = nn.functional.normalize(0.1 * centres[label] + 0.9 * value, dim=0)
    torch.testing.assert_close(task._centres, centres, rtol=1e-4, atol=1e-5)


def test_train_ids_keeps_some_identities_and_whole_takes_all():
    config = parse("paul", [*COMMON, world(2, difficulty=0.7), "--data.train_ids=4"])
    data, whole = find_method("paul").load(config), load_dataset("synthetic", None, **config.data.options)
    assert len(set(data.train.pids.tolist())) == 4 and len(data.query) == len(whole.query)
    config = parse("paul-source", [*COMMON, world(2, difficulty=0.7), "--data.whole=true"])
    everything = find_method("paul-source").load(config).train
    assert len(everything) == len(whole.train) + len(whole.query) + len(whole.gallery)
    assert len(set(everything.pids.tolist())) == 60


@pytest.mark.network
def test_two_processes_adapt_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = [*COMMON, *NET, world(2, difficulty=0.3, ids=20), "--loss.k=5", "--optim.lr=0.01", "--optim.epochs=1"]
    settings += ["--evaluate_every=1", "--precision=64-true"]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    found = []
    for start, batch in (([], 12), (torchrun, 6)):
        out = tmp_path / str(batch)
        command = [sys.executable, *start, __file__, *settings, f"--data.batch={batch}"]
        done = subprocess.run([*command, f"--out={out}"], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found.append(state(out))
    one, two = found
    assert one.keys() == two.keys()
    for name, value in one.items():
        worst = (value.double() - two[name].double()).abs().max() / value.double().abs().max().clamp(min=1e-3)
        assert worst < 1e-6, f"{name}: {worst}"


if __name__ == "__main__":  # a process of the test above
    run("paul", sys.argv[1:])
    leave_processes()

# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Training of CASN over IDE or PCB."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from reidfast.data import ReidData, ShuffleSampler, SiameseSampler
from reidfast.engine.config import DataConfig, OptimConfig, RunConfig
from reidfast.engine.methods.baseline import unfold
from reidfast.engine.task import ReidDataModule, ReidTask, optimizer_and_schedule
from reidfast.losses import CASNLoss
from reidfast.models import CASN, create_model


@dataclass
class PairDataConfig(DataConfig):
    """What is trained and evaluated on, and which pairs.

    Args:
        sampler: "pairs": `ids` x `images` a step, over their cameras, with pairs drawn among them; "shuffle": every
            image once an epoch in batches of `ids` x `images`, no pairs.
        positives: Pairs of one person in a step.
        negatives: Pairs of two.
    """

    ids: int = 8
    images: int = 4
    camera_aware: bool = True
    sampler: Literal["pairs", "shuffle"] = "pairs"
    positives: int = 16
    negatives: int = 16


@dataclass
class CASNModelConfig:
    """What is trained.

    Args:
        base: "pcb" or "ide".
        backbone: Name for `create_model`.
        weights: Checkpoint of the backbone; None: random.
        options: Of the backbone.
        base_options: Of the baseline.
        target: Of PCB's part logits: "sum", "mean", or "each" with a map of its own.
        detach_weights: No second order through the weights of the maps.
        closed_form: The head's derivative written out; None: where the head allows it.
        diff: Of the pair classifier: "neg_square", "square", "abs", "signed".
        indicator: "gradient" or "contribution".
        channels_last: Keep maps with the channels innermost: often much faster on the CPU, and for half types on GPUs.
        unfold: Undo folded batch norms of the weights before training, over this many training images; 0: no.
    """

    base: Literal["pcb", "ide"] = "pcb"
    backbone: str = "resnet50"
    weights: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    base_options: dict[str, Any] = field(default_factory=dict)
    target: Literal["sum", "mean", "each"] = "sum"
    detach_weights: bool = False
    closed_form: bool | None = None
    diff: Literal["neg_square", "square", "abs", "signed"] = "neg_square"
    indicator: Literal["gradient", "contribution"] = "gradient"
    channels_last: bool = True
    unfold: int = 0


@dataclass
class CASNLossConfig:
    """What is minimised; see `reidfast.losses.CASNLoss`.

    Args:
        attention: lambda_1, of the identification attention.
        siamese: lambda_2, of verification and consistency.
        consistency: alpha_sa, of consistency beside verification.
        start: Epochs before the two attention losses begin.
        label_smoothing: Of the cross-entropy.
        alpha: Steepness of the soft mask.
        beta: Its threshold.
        normalisation: Of the attention before masking, by "image" or over the "batch".
        score: Of the erased image, "probability" or "sigmoid".
        classes: Whose logit is explained, the "true" or the "predicted" class.
        mask_forward: Batch norms of the pass of erased images: "train", "batch", "eval".
        threshold: Of the profile's span.
        span: "crop", "mask", "none".
        margin: Of the hinge on negative pairs; None: none.
    """

    attention: float = 0.5
    siamese: float = 0.05
    consistency: float = 0.2
    start: int = 10
    label_smoothing: float = 0.0
    alpha: float = 10.0
    beta: float = 0.5
    normalisation: Literal["image", "batch"] = "image"
    score: Literal["probability", "sigmoid"] = "probability"
    classes: Literal["true", "predicted"] = "true"
    mask_forward: Literal["train", "batch", "eval"] = "train"
    threshold: float = 0.5
    span: Literal["crop", "mask", "none"] = "crop"
    margin: float | None = None


@dataclass
class Config(RunConfig):
    """A run of CASN.

    Args:
        data: What is trained and evaluated on.
        model: What is trained.
        loss: What is minimised.
        optim: How.
    """

    data: PairDataConfig = field(default_factory=PairDataConfig)
    model: CASNModelConfig = field(default_factory=CASNModelConfig)
    loss: CASNLossConfig = field(default_factory=CASNLossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


class PairDataModule(ReidDataModule):
    """Batches of training images, and the pairs in them.

    Args:
        data: The data set.
        config: Sizes, sampler, transforms.
        seed: Of what is drawn.
    """

    config: PairDataConfig
    drawn: SiameseSampler | ShuffleSampler

    def sampler(self, ids: int, images: int) -> SiameseSampler | ShuffleSampler:
        """Which rows come together; the last sampler made also tells the pairs."""
        c = self.config
        if c.sampler == "shuffle":
            self.drawn = ShuffleSampler(len(self.labels), ids * images, seed=self.seed)
        else:
            self.drawn = SiameseSampler(
                self.labels,
                self.data.train.camids,
                ids,
                images,
                positives=c.positives,
                negatives=c.negatives,
                camera_aware=c.camera_aware,
                mark_repeats=True,
                seed=self.seed,
            )
        return self.drawn

    def pairs(self, step: int) -> tuple[Tensor, Tensor, int]:
        """Places of the first and second images of the pairs of a step, and how many are positive."""
        if not isinstance(self.drawn, SiameseSampler):
            raise ValueError('train casn: expected data.sampler "pairs" where loss.siamese is not 0, got "shuffle"')
        pairs = self.drawn.pairs(step)
        return torch.from_numpy(pairs.first), torch.from_numpy(pairs.second), pairs.positives


class CASNTask(ReidTask):
    """Identification, erasing, verification and consistency.

    Args:
        model: The network.
        config: Losses, optimiser, evaluation.
        data: The data set, for evaluation.
        module: Gives the pairs.
    """

    model: CASN

    def __init__(self, model: CASN, config: Config, data: ReidData, module: PairDataModule) -> None:
        super().__init__(model, config, data)
        self.pairs, self.num_classes = module.pairs, len(module.classes)
        options = asdict(config.loss)
        self.start = options.pop("start")
        self.loss = CASNLoss(**options)
        if not self.loss.needs_pairs:
            model.pair.requires_grad_(False)
        # PCB leaves out what a backbone (OSNet) puts behind its pooled map
        self.find_unused_parameters = config.model.base == "pcb" and hasattr(model.backbone, "fc")

    def prepare(self, module: Any) -> None:
        """Undo folded batch norms."""
        if self.config.model.unfold:
            unfold(self.model.backbone, module, self.config.model.unfold)

    def card(self) -> dict[str, Any]:
        """Base, backbone and the options of the attention."""
        return {"model": {"name": "casn", "options": {"num_classes": self.num_classes, **_options(self.config.model)}}}

    def configure_optimizers(self) -> Any:
        """Adam or SGD, the backbone at its own rate, the schedule by epoch."""
        o = self.config.optim
        backbone = [p for p in self.model.backbone.parameters() if p.requires_grad]
        head = [p for p in self.model.head_parameters() if p.requires_grad]
        return optimizer_and_schedule([{"params": backbone, "lr": o.lr * o.backbone_factor}, {"params": head}], o)

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor, Tensor], index: int) -> Tensor:
        """Loss of one batch."""
        images, labels = batch[0], batch[1]
        first, second, positives = None, None, 0
        if self.loss.needs_pairs:
            first, second, positives = self.pairs(index)
            first, second = first.to(labels.device), second.to(labels.device)
        attentive = self.current_epoch >= self.start
        out = self.loss(self.model, images, labels, first, second, positives, attentive=attentive)
        losses = {f"loss/{name}": value for name, value in out.terms.items()}
        self.log_dict(losses | out.watched | {"loss/total": out.total.detach()}, prog_bar=True)
        return out.total

    def on_train_epoch_end(self) -> None:
        """Evaluate, and say so where the indicator has stopped choosing."""
        super().on_train_epoch_end()
        share = self.trainer.callback_metrics.get("indicator")
        if share is not None and float(share) > 0.95:
            self.print(f"casn: the indicator marks {float(share):.0%} of the elements: it no longer chooses")


def build(config: Config, data: ReidData) -> tuple[CASNTask, PairDataModule]:
    """The task and the data of a run."""
    if config.loss.siamese and config.data.sampler != "pairs":
        raise ValueError('train casn: expected data.sampler "pairs" where loss.siamese is not 0, got "shuffle"')
    module = PairDataModule(data, config.data, config.seed)
    model = create_model(
        "casn", num_classes=len(module.classes), backbone_weights=config.model.weights, **_options(config.model)
    )
    if config.model.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return CASNTask(model, config, data, module), module  # type: ignore[arg-type]


def _options(model: CASNModelConfig) -> dict[str, Any]:
    """Of `create_model`, all but the weights and the number of classes."""
    options = asdict(model)
    del options["weights"], options["unfold"], options["channels_last"]
    options["backbone_options"] = options.pop("options")
    return options

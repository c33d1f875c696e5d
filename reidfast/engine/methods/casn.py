# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Training of CASN over IDE or PCB."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from reidfast.data import ReidData, ShuffleSampler, SiameseSampler
from reidfast.engine.config import DataConfig, OptimConfig, RunConfig, UnfoldConfig, model_options
from reidfast.engine.data import ReidDataModule
from reidfast.engine.method import Method
from reidfast.engine.task import ReidTask, build_model
from reidfast.losses import CASNLoss
from reidfast.models import CASN


@dataclass
class PairDataConfig(DataConfig):
    """Training and evaluation data, and the pairs of a batch.

    Args:
        sampler: "pairs" draws `ids` x `images` a step over their cameras, and pairs among them; "shuffle" draws every
            image once an epoch in batches of `ids` x `images`, without pairs.
        positives: Pairs of one person in a step.
        negatives: Pairs of two persons in a step.
    """

    ids: int = 8
    images: int = 4
    camera_aware: bool = True
    sampler: Literal["pairs", "shuffle"] = "pairs"
    positives: int = 16
    negatives: int = 16


@dataclass
class CASNModelConfig(UnfoldConfig):
    """The network to train.

    Args:
        base: Baseline below the attention: "pcb" or "ide".
        base_options: Options of that baseline (ide: hidden, dropout; pcb: parts, reduced, dropout).
        target: Attention maps of PCB: one of the "sum" or the "mean" of its part logits, or one of "each" part's.
        detach_weights: Treat the weights of the attention maps as constants (no second-order gradient).
        closed_form: Write out the derivative of the head instead of calling autograd; null: where the head allows it.
        diff: Difference that the pair classifier sees: "neg_square", "square", "abs" or "signed".
        indicator: Rule that chooses elements of the difference: "gradient" or "contribution".
        channels_last: Store feature maps with the channels innermost: often much faster on the CPU, and for half types
            on GPUs.
    """

    base: Literal["pcb", "ide"] = "pcb"
    base_options: dict[str, Any] = field(default_factory=dict)
    target: Literal["sum", "mean", "each"] = "sum"
    detach_weights: bool = False
    closed_form: bool | None = None
    diff: Literal["neg_square", "square", "abs", "signed"] = "neg_square"
    indicator: Literal["gradient", "contribution"] = "gradient"
    channels_last: bool = True


@dataclass
class CASNLossConfig:
    """Identification, identification attention, verification and consistency; see `reidfast.losses.CASNLoss`.

    Args:
        attention: Weight lambda_1 of the identification attention loss.
        siamese: Weight lambda_2 of verification and consistency.
        consistency: Weight alpha_sa of consistency relative to verification.
        start: Number of epochs before the two attention losses begin.
        label_smoothing: Label smoothing of the cross-entropy, from 0 to 1.
        alpha: Steepness of the soft mask.
        beta: Threshold of the soft mask.
        normalisation: Normalise the attention before masking by "image" or over the "batch".
        score: Score of the erased image that is minimised: "probability" or "sigmoid".
        classes: Class whose logit is explained: the "true" or the "predicted" one.
        mask_forward: Mode of the batch norms in the pass of erased images: "train", "batch" or "eval".
        threshold: Threshold of the attention profile that bounds the person's span.
        span: Treatment of rows outside the person's span: "crop", "mask" or "none".
        margin: Margin of the hinge on negative pairs; null: no hinge.
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
    """A run of CASN."""

    data: PairDataConfig = field(default_factory=PairDataConfig)
    model: CASNModelConfig = field(default_factory=CASNModelConfig)
    loss: CASNLossConfig = field(default_factory=CASNLossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


class PairDataModule(ReidDataModule):
    """Batches of training images, and the pairs in them.

    Args:
        data: The data set.
        config: Sizes, sampler, transforms.
        seed: Seed of what is drawn.
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
        module: Data module that knows the pairs of a step.
        recipe: Name and options of the model.
    """

    model: CASN

    def __init__(
        self, model: CASN, config: Config, data: ReidData, module: PairDataModule, recipe: dict[str, Any]
    ) -> None:
        super().__init__(model, config, data, recipe)
        self.pairs = module.pairs
        options = asdict(config.loss)
        self.start = options.pop("start")
        self.loss = CASNLoss(**options)
        if not self.loss.needs_pairs:
            model.pair.requires_grad_(False)
        # PCB leaves out what a backbone (OSNet) puts behind its pooled map
        self.find_unused_parameters = config.model.base == "pcb" and hasattr(model.backbone, "fc")

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
    options = model_options(config.model)
    model, recipe = build_model("casn", config.model, num_classes=len(module.classes), **options)
    return CASNTask(model, config, data, module, recipe), module


METHODS = tuple(Method(name, Config, build) for name in ("casn", "casn-ide"))

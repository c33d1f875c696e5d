# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""A model as an ONNX file, compared with the model itself before anyone gets to see it."""

from __future__ import annotations

import io
import json
import logging
import os
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from reidfast import use_backend
from reidfast._files import write_whole
from reidfast.data.images import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["Exported", "export_onnx"]


class Exported(NamedTuple):
    """What `export_onnx` wrote.

    Attributes:
        path: The file.
        opset: Version of ONNX's operators.
        feature_size: D of the output `features [batch, D]`.
        error: Largest difference to the model, over its largest value, among the batches compared.
        batches: Sizes of these batches.
    """

    path: Path
    opset: int
    feature_size: int
    error: float
    batches: tuple[int, ...]


def export_onnx(
    model: nn.Module,
    out: str | os.PathLike[str],
    *,
    size: tuple[int, int] = (256, 128),
    opset: int = 18,
    exporter: str = "dynamo",
    batches: tuple[int, ...] = (1, 3, 8),
    tolerance: float = 1e-4,
    meta: Mapping[str, Any] | None = None,
) -> Exported:
    """Write `images [batch, 3, height, width]` -> `features [batch, D]` as ONNX, with any batch size.

    reidfast's own ops are exported as their reference, in operators that every runtime has. Before the file appears,
    onnxruntime runs it on random images, and its features are compared with the model's.

    Args:
        model: From normalised images to one feature tensor in evaluation mode; put into it, and back after.
        out: The file, `.onnx`.
        size: (height, width) of the images; fixed in the file.
        opset: Version of ONNX's operators.
        exporter: "dynamo" (torch.export; needs onnxscript) or "torchscript" (the older tracer).
        batches: Batch sizes compared.
        tolerance: Largest difference allowed, over the largest value of the features.
        meta: Kept in the file beside size, mean and standard deviation of its input, as JSON under `reidfast`.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is missing.
        ValueError: The name does not end in .onnx, the model cannot be exported, or the runtime's features differ:
            no file is written.
    """
    try:
        import onnx
        import onnxruntime

        if exporter == "dynamo":
            import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f'export: {error.name} is missing; pip install "reidfast[onnx]"') from error
    path = Path(out)
    if path.suffix != ".onnx":
        raise ValueError(f"export: expected a name ending in .onnx, got {path.name}")
    if exporter not in ("dynamo", "torchscript"):
        raise ValueError(f"export: expected exporter dynamo or torchscript, got {exporter!r}")
    training = model.training
    model.eval().cpu()
    generator = torch.Generator().manual_seed(0)
    height, width = int(size[0]), int(size[1])
    try:
        images = torch.randn(2, 3, height, width, generator=generator)
        with torch.no_grad(), use_backend("reference"):
            expected = model(images)
            if not isinstance(expected, Tensor) or expected.dim() != 2 or len(expected) != 2:
                found = tuple(expected.shape) if isinstance(expected, Tensor) else type(expected).__name__
                raise ValueError(f"export: expected features [batch, D] from the model, got {found}")
            content = _convert(model, images, opset, exporter)
        proto = onnx.load_from_string(content)
        described = {"size": [height, width], "mean": IMAGENET_MEAN, "std": IMAGENET_STD, **(meta or {})}
        onnx.helper.set_model_props(proto, {"reidfast": json.dumps(described)})
        onnx.checker.check_model(proto)
        content = proto.SerializeToString()
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        worst = 0.0
        for rows in batches:
            images = torch.randn(rows, 3, height, width, generator=generator)
            with torch.no_grad():
                wanted = model(images).numpy()
            (found,) = session.run(["features"], {"images": images.numpy()})
            if found.shape != wanted.shape:
                raise ValueError(f"export: the runtime gives {found.shape} for a batch of {rows}, not {wanted.shape}")
            scale = max(float(np.abs(wanted).max()), 1e-12)
            worst = max(worst, float(np.abs(found.astype(np.float64) - wanted).max()) / scale)
    finally:
        model.train(training)
    if not worst <= tolerance:
        raise ValueError(
            f"export: the runtime's features differ from the model's by {worst:.2g} of their largest value, more than "
            f"{tolerance:g}; nothing was written"
        )
    with write_whole(path) as stream:
        stream.write(content)
    versions = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    return Exported(path, versions[0], int(wanted.shape[1]), worst, tuple(batches))


def _convert(model: nn.Module, images: Tensor, opset: int, exporter: str) -> bytes:
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["features"], "opset_version": opset}
    stream = io.BytesIO()
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):  # the exporters talk
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            if exporter == "torchscript":
                axes = {"images": {0: "batch"}, "features": {0: "batch"}}
                to: Any = stream
                torch.onnx.export(model, (images,), to, dynamo=False, dynamic_axes=axes, **names)
                return stream.getvalue()
            shapes = ({0: torch.export.Dim("batch")},)
            program = torch.onnx.export(
                model, (images,), dynamo=True, dynamic_shapes=shapes, verbose=False, optimize=True, **names
            )
        except Exception as error:  # whatever the tracer trips over
            root: BaseException = error
            while root.__cause__ is not None:
                root = root.__cause__
            lines = [line.strip() for line in str(root).splitlines() if line.strip()] or [type(root).__name__]
            raise ValueError(f"export: {type(model).__name__} cannot be exported: {lines[0]}") from error
    if program is None:
        raise ValueError("export: torch.onnx gave no program")
    return program.model_proto.SerializeToString()

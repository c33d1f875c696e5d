# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What an op is: its kernels, gradient, fake, checks and reference, in one entry.

The native library has no autograd (torch's stable ABI has none): each op's gradient is a `torch.autograd.Function` made
here from two dispatcher ops. `ops.*` are therefore the differentiable functions; `torch.ops.reidfast.*` are not.

A call goes straight to the kernel. Only when the kernel refuses are the inputs looked at in Python: to say in words
what was wrong, to bring mixed dtypes to a common one, or to let the reference serve a device that no kernel serves.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from reidfast.ops import _backends, _library

_is_compiling = torch.compiler.is_compiling
_autocast_is_on: Callable[[], bool] = torch._C._is_any_autocast_enabled
_warned: set[str] = set()


class NoKernel(NotImplementedError):
    """Raised by a kernel that does not take this call, which the reference then serves."""


class _Refuse(torch.autograd.Function):
    """Passes gradients on; differentiating them again raises. What they depend on comes behind them."""

    @staticmethod
    def forward(ctx: Any, name: str, count: int, *tensors: Tensor) -> Any:
        """Record that the first ``count`` tensors depend on all of ``tensors``."""
        ctx.name = name
        return tensors[:count]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Refuse."""
        raise RuntimeError(
            f"{ctx.name}: double backward is not implemented; "
            "`with reidfast.use_backend('reference')` is differentiable twice"
        )


def refuse_twice(name: str, grads: Sequence[Tensor | None], *depends: Tensor | None) -> list[Tensor | None]:
    """``grads``, whose own differentiation raises instead of giving zeros in silence."""
    made = [g for g in grads if g is not None]
    guarded = iter(_Refuse.apply(name, len(made), *made, *[t for t in depends if t is not None]))
    return [g if g is None else next(guarded) for g in grads]


class Op:
    """One op: called with the inputs of its dispatcher op's schema, in order."""

    def __init__(
        self,
        name: str,
        *,
        reference: Callable[..., Any],
        check: Callable[..., tuple[Any, ...]],
        fake: Callable[..., Any],
        backward_fake: Callable[..., Any] | None = None,
        forward_fake: Callable[..., Any] | None = None,
        tensors: int,
        gradients: tuple[int, ...] = (),
        masked: bool = True,
        save: Callable[[tuple[Any, ...], Any], tuple[tuple[Any, ...], tuple[Any, ...]]] | None = None,
        backward: Callable[..., Sequence[Tensor | None]] | None = None,
        outputs: int = 1,
        constant_outputs: tuple[int, ...] = (),
        lower: tuple[int, ...] = (),
        bind: Callable[[Any], Callable[..., Any]] | None = None,
        triton: str | None = None,
    ) -> None:
        """Register op ``name``.

        Args:
            name: Stem of the op; the dispatcher op is ``reidfast::<name>``, its gradient ``reidfast::<name>_backward``.
            reference: Plain PyTorch with the schema's inputs.
            check: Takes the inputs; raises ValueError or TypeError in words, or returns inputs that the kernels take
                (dtypes brought together).
            fake: The outputs' shapes, dtypes and strides, from the inputs.
            backward_fake: The same for the backward op.
            forward_fake: The same for ``<name>_forward``, where the op has one that also makes what its gradient needs.
            tensors: How many inputs are tensors (or None); they come first, and the gradient saves them.
            gradients: Which inputs have a gradient.
            masked: Whether the backward op's last arguments say which of ``gradients`` are wanted.
            save: ``(inputs, outputs) -> (tensors, others)`` for the gradient; default: the inputs.
            backward: ``(op, grads, tensors, others, needs) -> one gradient per entry of gradients``; default: calls the
                backward op with the gradients of the outputs, the saved tensors and others, and ``needs``.
            outputs: How many outputs there are; gradients of those nobody used arrive as None where it is above 1.
            constant_outputs: Outputs without a gradient.
            lower: Inputs that autocast brings to its dtype, for matrix work; without any, autocast promotes.
            bind: For an op whose gradient is of another form: ``(namespace of torch.ops) -> differentiable function``.
            triton: Module of ``reidfast.ops.triton`` whose functions are the CUDA kernels, where csrc/cuda has none.
        """
        self.name = name
        self.reference = reference
        self.check = check
        self.tensors = tensors
        self.gradients = gradients
        self.masked = masked
        self.save = save or (lambda inputs, outputs: (inputs[:tensors], inputs[tensors:]))
        self.backward = backward or self._plain_backward
        self.outputs = outputs
        self.constant_outputs = constant_outputs
        self.lower = lower
        self.triton = triton
        self._bind = bind
        self.native: Callable[..., Any] | None = None
        self.run: Callable[..., Any] = self._checked_reference
        if _library.loaded:
            for suffix, shapes in (("", self._checked(fake)), ("_forward", forward_fake), ("_backward", backward_fake)):
                if shapes is not None:
                    torch.library.register_fake(f"reidfast::{name}{suffix}")(shapes)
                    if triton is not None:
                        _register_triton(triton, f"{name}{suffix}")
            for key in ("AutocastCPU", "AutocastCUDA"):
                torch.library.impl(f"reidfast::{name}", key)(self._autocast)
            self.native = self.bind(torch.ops.reidfast)
        _backends.add(self)

    def _checked(self, fake: Callable[..., Any]) -> Callable[..., Any]:
        """The fake, which refuses what a kernel would refuse."""

        def checked(*inputs: Any) -> Any:
            self.check(*inputs)
            return fake(*inputs)

        return checked

    # ---- calls -------------------------------------------------------------------------------------------------------

    def __call__(self, *inputs: Any) -> Any:
        """Run the op."""
        if _is_compiling():
            return self._traced(*inputs)
        try:
            if _autocast_is_on():
                return self._autocast(*inputs)
            return self.run(*inputs)
        except Exception as error:
            return self._refused(error, inputs)

    def _traced(self, *inputs: Any) -> Any:
        """The call as torch.compile sees it: checked in front, since a graph cannot try and try again."""
        if torch.is_autocast_enabled(inputs[0].device.type):
            inputs = self.cast(inputs, torch.get_autocast_dtype(inputs[0].device.type))
        return self.run(*self.check(*inputs))

    def _autocast(self, *inputs: Any) -> Any:
        device = next((x.device.type for x in inputs if isinstance(x, Tensor)), "cpu")
        if torch.is_autocast_enabled(device):
            inputs = self.cast(inputs, torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            try:
                return self.run(*inputs)
            except Exception as error:
                return self._refused(error, inputs)

    def cast(self, inputs: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
        """Inputs as autocast wants them; those of float64 stay."""
        return tuple(
            x.to(dtype) if i in self.lower and isinstance(x, Tensor) and x.dtype is torch.float32 else x
            for i, x in enumerate(inputs)
        )

    def _refused(self, error: Exception, inputs: tuple[Any, ...]) -> Any:
        """After a kernel refused: raise in words, or run what can serve these inputs."""
        _library.raise_interrupt(error)
        try:
            usable = self.check(*inputs)
        except (TypeError, ValueError, IndexError) as clear:
            raise clear from None
        if any(a is not b for a, b in zip(usable, inputs, strict=True)):
            return self(*usable)
        if type(error) is RuntimeError and str(error).startswith(f"{self.name}: expected"):
            raise ValueError(str(error)) from None  # torch 2.15 makes every C++ exception of a kernel a RuntimeError
        unserved = isinstance(error, NotImplementedError) or "this build has no code for" in str(error)
        if not unserved or _backends.forced() not in (None, "native"):
            raise error
        if not isinstance(error, NoKernel):
            self._warn_unserved(error, usable)
        return self.reference(*usable)

    def _warn_unserved(self, error: Exception, inputs: tuple[Any, ...]) -> None:
        device = next(x.device.type for x in inputs if isinstance(x, Tensor))
        if device in _warned:
            return
        _warned.add(device)
        reason = _library.cuda_reason if device == "cuda" and _library.cuda_reason else str(error).split("\n")[0]
        warnings.warn(
            f"reidfast: no kernel serves device {device!r}, plain PyTorch does: {reason}", RuntimeWarning, stacklevel=5
        )

    def _checked_reference(self, *inputs: Any) -> Any:
        return self.reference(*self.check(*inputs))

    def kernel(self, backend: str) -> Callable[..., Any]:
        """The implementation of a backend, with the inputs of the schema."""
        if backend == "reference":
            return self.reference
        assert self.native is not None
        return self.native

    def choose(self, forced: str | None) -> None:
        """Put an implementation in force: the forced one, else the kernels, else the reference."""
        if forced is None:
            self.run = self.native or self._checked_reference
        else:
            self.run = self._forced_reference if forced == "reference" else self._forced_kernel

    def _forced_reference(self, *inputs: Any) -> Any:
        return self._checked_reference(*inputs)

    def _forced_kernel(self, *inputs: Any) -> Any:
        backend = _backends.forced() or "native"
        inputs = self.check(*inputs)
        device = next(x.device.type for x in inputs if isinstance(x, Tensor))
        if reason := self.reasons(backend, device):
            raise RuntimeError(f"{self.name}: backend '{backend}' cannot serve {device}: {reason}")
        return self.kernel(backend)(*inputs)

    def reasons(self, backend: str, device: str) -> str:
        """Why ``backend`` cannot serve ``device``; empty when it can."""
        if backend == "reference":
            return ""
        if backend == "triton":
            if device != "cuda":
                return "Triton kernels need a CUDA device"
            if self.triton is None:
                return "this op has no Triton kernel"
            return _library.native_reason or _backends.triton_reason()
        if not _library.loaded:
            return _library.native_reason
        if device == "cuda":
            return "this op's GPU kernel is written in Triton" if self.triton else _library.cuda_reason
        return "" if device in ("cpu", "meta") else f"there are no kernels for {device}"

    # ---- the differentiable native function --------------------------------------------------------------------------

    def bind(self, namespace: Any) -> Callable[..., Any]:
        """The op of a namespace of ``torch.ops`` as a differentiable function."""
        if self._bind is not None:
            return self._bind(namespace)
        forward = getattr(namespace, self.name).default
        if not self.gradients:
            return forward  # type: ignore[no-any-return]
        gradients, apply = self.gradients, self._function(namespace).apply

        def native(*inputs: Any) -> Any:
            if torch.is_grad_enabled():
                for i in gradients:
                    if inputs[i].requires_grad:
                        return apply(*inputs)
            return forward(*inputs)

        return native

    def _function(self, namespace: Any) -> type[torch.autograd.Function]:
        name, save, gradients, backward = self.name, self.save, self.gradients, self.backward
        several, constant = self.outputs > 1, self.constant_outputs
        forward_op = getattr(namespace, name).default
        backward_op = getattr(namespace, f"{name}_backward").default

        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *inputs: Any) -> Any:
                outputs = forward_op(*inputs)
                tensors, ctx.others = save(inputs, outputs)
                ctx.save_for_backward(*tensors)
                ctx.count = len(inputs)
                if several:
                    ctx.set_materialize_grads(False)
                    outputs = tuple(outputs)
                    if constant:
                        ctx.mark_non_differentiable(*[outputs[i] for i in constant])
                return outputs

            @staticmethod
            def backward(ctx: Any, *grads: Any) -> Any:
                result: list[Tensor | None] = [None] * ctx.count
                if several and all(g is None for g in grads):
                    return tuple(result)
                tensors, needs = ctx.saved_tensors, [ctx.needs_input_grad[i] for i in gradients]
                twice = torch.is_grad_enabled()
                with torch.no_grad():
                    made = backward(backward_op, grads, tensors, ctx.others, needs)
                if twice:
                    made = refuse_twice(name, made, *grads, *tensors)
                for i, g in zip(gradients, made, strict=True):
                    result[i] = g
                return tuple(result)

        Function.__name__ = Function.__qualname__ = name
        return Function

    def _plain_backward(
        self, op: Any, grads: Any, tensors: tuple[Any, ...], others: tuple[Any, ...], needs: list[bool]
    ) -> Sequence[Tensor | None]:
        grads = [g for i, g in enumerate(grads) if i not in self.constant_outputs]
        made = op(*grads, *tensors, *others, *(needs if self.masked else ()))
        return made if isinstance(made, (tuple, list)) else (made,)


def _register_triton(module: str, function: str) -> None:
    """Let a function of ``reidfast.ops.triton.<module>`` be the CUDA kernel of the dispatcher op of its name.

    The module is imported by the first call: ``import reidfast`` does not wait for Triton.
    """

    def run(*inputs: Any) -> Any:
        if reason := _backends.triton_reason():
            raise NoKernel(reason)
        import importlib

        return getattr(importlib.import_module(f"reidfast.ops.triton.{module}"), function)(*inputs)

    torch.library.impl(f"reidfast::{function}", "CUDA")(run)

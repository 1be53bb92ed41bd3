"""Calls right before and right after an optimizer updates the weights.

``step`` is wrapped on the instance, as torch's schedulers do: torch's own step hooks would miss a ``step`` that was
replaced on the instance, and an optimizer without hook tables. Lightning passes a closure to ``step`` that runs the
training step and the user's hooks, so the wrapper is suspended while the closure runs. If the optimizer runs torch's
step hooks, it is suspended for the user's hooks too.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from types import MethodType
from typing import Any

from lightning.pytorch.core.optimizer import LightningOptimizer
from torch.optim import Optimizer


def unwrapped(optimizer: Any) -> Any:
    """Return the optimizer that Lightning steps, without a LightningOptimizer around it."""
    return optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer


def can_wrap_step(optimizer: Any) -> bool:
    """Return whether `step` can be replaced on this instance, which a property of the class prevents."""
    return not hasattr(type(getattr(type(optimizer), "step", None)), "__set__")


class UpdateWrapper:
    """Calls `before` when the optimizer begins to update and `after` when it ends; both may be called repeatedly."""

    def __init__(self, optimizer: Any, before: Callable[[], None], after: Callable[[], None]) -> None:
        """Wrap the step.

        Args:
            optimizer: the optimizer; if `can_wrap_step` is false, only its hooks are used
            before: called when the step begins, and again whenever its closure has returned
            after: called when the closure begins, and when the step has ended or raised
        """
        self._optimizer = optimizer
        self._before, self._after = before, after
        self._is_inside = False
        self._depth = 0
        self._is_removed = False
        self._wrapped: list[tuple[Any, Any]] = []  # our steps, and what the instance had before
        self._handles: list[Any] = []
        # Only the optimizer's own tables: an object that forwards attributes would show those of another optimizer.
        own = vars(optimizer)
        self._tables: list[Any] = [own.get("_optimizer_step_pre_hooks"), own.get("_optimizer_step_post_hooks")]
        if all(isinstance(table, OrderedDict) for table in self._tables):
            self._handles = [
                optimizer.register_step_pre_hook(self._before_pre_hooks),
                optimizer.register_step_pre_hook(self._after_pre_hooks),
                optimizer.register_step_post_hook(self._before_post_hooks),
            ]
        self.keep_in_place()

    def keep_in_place(self) -> None:
        """Become outermost again if the step was replaced or hooks were registered since the last call."""
        self._depth = 0
        if self._handles:
            first, last, post = self._handles
            pre_hooks, post_hooks = self._tables
            pre_hooks.move_to_end(first.id, last=False)
            pre_hooks.move_to_end(last.id)
            post_hooks.move_to_end(post.id, last=False)
        ours = self._wrapped[-1][0] if self._wrapped else None
        if can_wrap_step(self._optimizer) and (ours is None or vars(self._optimizer).get("step") is not ours):
            self._wrap()

    def _wrap(self) -> None:
        inner = self._plain_step()
        on_instance = vars(self._optimizer).get("step")
        # A bound method stays one: torch's schedulers use its __func__, and others its signature.
        is_method = isinstance(inner, MethodType)

        @functools.wraps(inner.__func__ if is_method else inner)
        def step(*args: Any, **kwargs: Any) -> Any:
            return self._step(inner, args[1:] if is_method else args, kwargs)

        ours: Any = MethodType(step, self._optimizer) if is_method else step
        vars(self._optimizer)["step"] = ours
        self._wrapped.append((ours, on_instance))

    def _plain_step(self) -> Any:
        # torch's zero_grad makes the class's step run hooks, even for an optimizer without hook tables. Unless its step
        # is unwrapped, such an optimizer would fail in torch from its second step on.
        inner = self._optimizer.step
        is_torchs = isinstance(self._optimizer, Optimizer) and getattr(inner, "hooked", False)
        if is_torchs and not hasattr(self._optimizer, "_optimizer_step_pre_hooks"):
            return MethodType(inner.__func__.__wrapped__, self._optimizer)
        return inner

    def _step(self, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._is_inside or self._is_removed:
            return inner(*args, **kwargs)
        self._is_inside, self._depth = True, 0
        self._before()
        try:
            args, kwargs = self._suspend_in_closure(args, kwargs, 0)
            return inner(*args, **kwargs)
        finally:
            self._is_inside = False
            self._after()

    def _suspend_in_closure(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], place: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        closure = kwargs.get("closure", args[place] if len(args) > place else None)
        if not callable(closure):  # a gradient scaler calls it before the step
            return args, kwargs

        def suspended(*closure_args: Any, **closure_kwargs: Any) -> Any:
            self._after()  # an optimizer may call its closure several times
            loss = closure(*closure_args, **closure_kwargs)
            self._before()
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": suspended}
        return (*args[:place], suspended, *args[place + 1 :]), kwargs

    # A subclass's step that calls its parent's step runs the hooks twice; only the outer run counts.

    def _before_pre_hooks(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self._depth == 0:
            self._after()

    def _after_pre_hooks(self, optimizer: Any, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        self._depth += 1
        if self._depth > 1:
            return None
        self._before()
        # Other code may step without the wrapper: by the class's function, or by a method stored before.
        return None if self._is_inside else self._suspend_in_closure(args, kwargs, 1)

    def _before_post_hooks(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._depth = max(0, self._depth - 1)
        if self._depth == 0:
            self._after()

    def remove(self) -> None:
        """Remove the wrapper and the hooks. A wrapper that was wrapped by other code stays, and does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._is_removed = True
        attributes = vars(self._optimizer)
        while self._wrapped and attributes.get("step") is self._wrapped[-1][0]:
            _, inner = self._wrapped.pop()
            if inner is None:
                del attributes["step"]
            else:
                attributes["step"] = inner
        self._wrapped = []

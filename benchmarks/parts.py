"""Where the time of a training step goes, measured inside the very step that is timed.

At any moment one part is running, and ``enter`` or ``leave`` closes it, so the parts add up to the step. The forward of a call
is between its beginning and end. Its backward is between two tensor hooks, one on its result and one on its arguments, which run
when these gradients are ready. autograd runs in reverse order, so everything that distillation adds is differentiated before
the student, and a hook on the student's logits and boxes marks where the student's backward begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

PARTS = ("student", "crops", "teacher on targets", "teacher on predictions", "losses")
STUDENT, CROPS, ON_TARGETS, ON_PREDICTIONS, LOSSES = PARTS


class Watch:
    """A stopwatch with a running part. While it is not started, what it watches runs as if it were not watched."""

    def __init__(self, device: str) -> None:
        self.cuda, self.running = device == "cuda", False
        self.one_thread = not self.cuda and torch.get_num_threads() == 1
        self._marks: list[tuple[str, Any]] = []  # a part, and when it began: an event, or both clocks of the CPU
        self._outer: list[str] = []
        self._part = STUDENT

    def start(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()
        self._marks, self._outer, self.running = [], [], True
        self.switch(STUDENT)

    def switch(self, part: str) -> None:
        if not self.running:
            return
        self._part = part
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((part, event))
        else:
            self._marks.append((part, (time.perf_counter(), time.process_time())))

    def stop(self) -> tuple[dict[str, float], dict[str, float]]:
        """Milliseconds of each part by the clock, and of the processor, which leaves out what others on the machine took.

        The latter is empty on a GPU, and with several threads, of which it would be the sum.
        """
        self.switch(STUDENT)
        self.running = False
        wall, cpu = dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 0.0)
        if self.cuda:
            torch.cuda.synchronize()
        for (part, begin), (_next, end) in zip(self._marks, self._marks[1:], strict=False):
            if self.cuda:
                wall[part] += begin.elapsed_time(end)
            else:
                wall[part] += 1e3 * (end[0] - begin[0])
                cpu[part] += 1e3 * (end[1] - begin[1])
        return wall, cpu if self.one_thread else {}

    def enter(self, part: str) -> None:
        self._outer.append(self._part)
        self.switch(part)

    def leave(self) -> None:
        self.switch(self._outer.pop())

    def at_gradient(self, tensor: Tensor, part: str) -> Tensor:
        """``tensor`` under another name: ``part`` runs from where its gradient is ready in the backward."""
        if not (self.running and isinstance(tensor, Tensor) and tensor.requires_grad and torch.is_grad_enabled()):
            return tensor
        alias = tensor.view_as(tensor)
        alias.register_hook(lambda _gradient: self.switch(part))
        return alias

    def function(self, function: Callable[..., Tensor], part: str) -> Callable[..., Tensor]:
        """``function``, counted as ``part`` both ways."""

        def call(*arguments):
            self.enter(part)
            result = function(*(self.at_gradient(argument, LOSSES) for argument in arguments))
            result = self.at_gradient(result, part)
            self.leave()
            return result

        return call

    def module(self, module: nn.Module, part: str) -> None:
        """Count every call of ``module``, which gives tensors by name, as ``part`` both ways."""

        def before(_module: nn.Module, arguments: tuple) -> tuple:
            self.enter(part)
            return tuple(self.at_gradient(argument, LOSSES) for argument in arguments)

        def after(_module: nn.Module, _arguments: tuple, result: Mapping[str, Tensor]) -> dict[str, Tensor]:
            result = {name: self.at_gradient(tensor, part) for name, tensor in result.items()}
            self.leave()
            return result

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)

"""Batch norms' memory: nothing of a step that is undone, and nothing for tasks without any."""

import torch
from torch import nn

from beit.engine.distribution import World
from beit.engine.running import RunningStatistics


def test_a_step_undone_leaves_no_trace() -> None:
    task = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    running = RunningStatistics(task, World())
    for undone in (0.0, 1.0):
        before = {name: buffer.clone() for name, buffer in task.named_buffers()}
        running.remember()
        task(torch.full((2, 3, 4, 4), torch.nan if undone else 1.0))
        running.settle(torch.tensor(undone))
        for name, buffer in task.named_buffers():
            assert buffer.equal(before[name]) == bool(undone), name


def test_a_task_without_batch_norms_has_none() -> None:
    task = nn.Sequential(nn.GroupNorm(1, 3))
    running = RunningStatistics(task, World())
    running.remember()
    running.settle(torch.tensor(0.0))

"""Criteria of what the readers of a group read: they need moments, from calibration inputs. One row per reader."""

from __future__ import annotations

import numpy as np

from spa.coupling.groups import Labels
from spa.importance.obs import Order, Task, eliminate
from spa.importance.table import Criterion
from spa.importance.tensors import GroupTensors, Matrix, Read, Score


def wanda(group: GroupTensors) -> list[Score]:
    """sum over the channel's weights of |w_of| |x_f|_2 (Sun et al., A Simple and Effective Pruning Approach for Large
    Language Models, arXiv 2306.11695, eq. 1), |x_f| as root mean square."""
    return [r.total(np.abs(r.weight).sum(0) * np.sqrt(np.diag(r.second))) for r in group.reads()]


def drift(group: GroupTensors) -> list[Score]:
    """E|W_c x_c|² / E|W x|²: how much of a reader's output goes with the channel, unmended; w_c² E[x_c²] where a
    channel is one feature. First order in the sense that removals are taken to add up."""
    return [energy_of_channels(r) / max(r.energy, 1e-30) for r in group.reads()]


def variance(group: GroupTensors) -> list[Score]:
    """Mean variance of the channel's features: what hardly varies, a bias can stand in for (Polyak & Wolf, Channel-level
    Acceleration of Deep Face Representations, 2015, section 3.1)."""
    return [r.total(np.diag(r.covariance)) / np.maximum(r.total(np.ones(len(r.labels))), 1) for r in group.reads()]


def obs(group: GroupTensors) -> list[Score]:
    """What removal costs with the readers mended, by greedy elimination (`spa.importance.obs`): the channel's step."""
    tasks = [Task(r.weight, r.covariance, r.labels) for r in group.reads()]
    if not tasks:
        return []
    return [by_step(eliminate(tasks, group.size), group.size)]


def by_step(order: Order, size: int) -> Score:
    """Per channel the error that its step of the elimination adds, rising along the order."""
    total = np.asarray(order.errors)
    ends = np.flatnonzero(np.append(np.diff(total) > 0, True))  # several channels may go in one step
    steps = np.diff(np.interp(np.arange(-1, len(total)), np.array([-1, *ends]), np.array([0.0, *total[ends]])))
    score = np.empty(size)
    # rising along the order: a step may look cheaper than the one that made it possible
    score[order.channels] = np.maximum.accumulate(steps) * (1 + 1e-9 * np.arange(size))
    return score


def energy_of_channels(read: Read) -> Score:
    """tr(W_c E[x_c x_cᵀ] W_cᵀ) per channel."""
    found = np.zeros(read.size)
    for channels, index in members(read.labels, read.size):
        blocks = read.second[index[:, :, None], index[:, None, :]]  # [channels, n, n]
        rows: Matrix = read.weight[:, index].transpose(1, 2, 0)  # [channels, n, outputs]
        found[channels] = np.einsum("cno,cno->c", rows, blocks @ rows)
    return np.maximum(found, 0)


def members(labels: Labels, size: int) -> list[tuple[Labels, Labels]]:
    """Channels of the same number of features together: (channels [k], their features [k, n])."""
    counts = np.bincount(labels[labels >= 0], minlength=size)
    order = np.argsort(labels, kind="stable")
    start = np.searchsorted(labels[order], np.arange(size))
    found = []
    for n in np.unique(counts[counts > 0]):
        channels = np.flatnonzero(counts == n)
        found.append((channels, order[start[channels][:, None] + np.arange(n)]))
    return found


WANDA = Criterion(wanda, needs="moments", aggregate="sum")
DRIFT = Criterion(drift, needs="moments", aggregate="sum")
VARIANCE = Criterion(variance, needs="moments")
OBS = Criterion(obs, needs="moments", normalise="none")

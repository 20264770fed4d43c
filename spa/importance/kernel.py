"""What the weights alone say of the activations: their covariance for inputs of which nothing is known.

The rows that make a channel, of all its producers and biases together, are one vector w_c. For white inputs z_p and z_k
have the covariance G = w_p · w_k. Where an activation lets only the positive part a = max(z, 0) through, with θ the angle
between w_p and w_k (Cho & Saul, Kernel Methods for Deep Learning, 2009, eq. 3 and 6),

    E[a_p a_k] = |w_p| |w_k| / 2π (sin θ + (π - θ) cos θ)        E[a_p] = |w_p| / sqrt(2π)        C = E[a a^T] - E[a] E[a]^T

and C = G where nothing rectifies.
"""

from __future__ import annotations

import numpy as np

from spa.importance.geometry import gram
from spa.importance.table import Criterion
from spa.importance.tensors import GroupTensors, Matrix, Score

DAMPING = 0.1  # of the mean variance of the channels
STEPS, WIDE = 48, 1024  # a group is eliminated in about so many steps at most; a wide one in a quarter of them


def covariance(group: GroupTensors) -> Matrix:
    """[channels, channels] of what the channels carry, up to the scale of the inputs."""
    products = np.zeros((group.size, group.size))
    for t in dict.fromkeys([*group.producers(), *(t for t in group.tensors if t.rank == 1)]):
        products += gram(t.rows())
    return rectify(products) if group.rectified else products


def rectify(products: Matrix) -> Matrix:
    """Covariance of the positive parts of Gaussians of mean zero and these covariances.

    >>> rectify(np.array([[1.0, -1.0], [-1.0, 1.0]])).round(4).tolist()
    [[0.3408, -0.1592], [-0.1592, 0.3408]]
    """
    norm = np.sqrt(np.maximum(np.diag(products), 0))
    both = np.outer(norm, norm)
    cosine = np.clip(np.divide(products, both, out=np.zeros_like(products), where=both > 0), -1, 1)
    angle = np.arccos(cosine)
    central: Matrix = both / (2 * np.pi) * (np.sin(angle) + (np.pi - angle) * cosine - 1)
    return central


def kernel(group: GroupTensors) -> list[Score]:
    """`obs` with the covariance that the weights suggest in place of a measured one: what a channel's readers lose once
    the others stand in for it (`spa.passes.merge`), relative to what they gave. Needs no inputs."""
    shared = covariance(group)
    wanted = np.zeros_like(shared)
    for t in group.matrices():
        if t.enters:
            products = gram(t.rows())
            wanted += products / max(float(np.vdot(products, shared)), 1e-30)
    return [elimination(wanted, shared)] if wanted.any() else []


def elimination(wanted: Matrix, shared: Matrix) -> Score:
    """Greedy elimination under tr(W C W^T), with `wanted` = W^T W and `shared` = C, damped: a channel's score is what its
    step adds. Removing S adds tr(E_SS P_SS^-1) with P = C^-1 (Hassibi & Stork 1993, eq. 5); the rest is re-solved."""
    size = len(shared)
    scale = float(np.trace(shared)) / size
    inverse = np.linalg.inv(shared + np.eye(size) * (DAMPING * scale + 1e-12)).astype(np.float64)
    alive, score, highest = np.arange(size), np.empty(size), 0.0
    most = max(1, size // (STEPS if size <= WIDE else STEPS // 4))
    while len(alive):
        costs = np.diag(wanted) / np.diag(inverse)
        gone = np.zeros(len(alive), bool)
        gone[order := np.argsort(costs, kind="stable")[:most]] = True
        step = np.linalg.solve(inverse[np.ix_(order, order)], wanted[np.ix_(order, order)])
        highest = max(highest, float(np.trace(step)) / len(order))
        # rising along the order: a step may look cheaper than the one that made it possible
        score[alive[order]] = highest * (1 + 1e-9 * (size - len(alive) + np.arange(len(order))))
        gain = np.linalg.solve(inverse[np.ix_(order, order)], inverse[np.ix_(order, ~gone)])
        cross, own = wanted[np.ix_(~gone, order)] @ gain, wanted[np.ix_(order, order)]
        wanted = wanted[np.ix_(~gone, ~gone)] - cross - cross.T + gain.T @ own @ gain
        inverse = inverse[np.ix_(~gone, ~gone)] - inverse[np.ix_(~gone, order)] @ gain
        alive = alive[~gone]
    return score


KERNEL = Criterion(kernel)

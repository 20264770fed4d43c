"""What the weights alone say of the activations: their covariance for inputs of which nothing is known.

The rows that make a channel, of all its producers and biases together, are one vector w_c. For white inputs z_p and z_k
have the covariance G = w_p · w_k. Where an activation lets only the positive part a = max(z, 0) through, with θ the angle
between w_p and w_k (Cho & Saul, Kernel Methods for Deep Learning, 2009, eq. 3 and 6),

    E[a_p a_k] = |w_p| |w_k| / 2π (sin θ + (π - θ) cos θ)        E[a_p] = |w_p| / sqrt(2π)        C = E[a a^T] - E[a] E[a]^T

and C = G where nothing rectifies.
"""

from __future__ import annotations

import numpy as np

from spa.importance.activation import by_step
from spa.importance.geometry import gram
from spa.importance.obs import Task, eliminate
from spa.importance.table import Criterion
from spa.importance.tensors import GroupTensors, Matrix, Score


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
    the others stand in for it (`spa.passes.merge`). Needs no inputs."""
    reading = [t for t in group.matrices() if t.enters]
    if not reading:
        return []
    shared = covariance(group)
    channels = np.arange(group.size)
    tasks = [Task(t.rows().T.astype(np.float64), shared, channels) for t in reading]
    return [by_step(eliminate(tasks, group.size, damping=0.1), group.size)]


KERNEL = Criterion(kernel)

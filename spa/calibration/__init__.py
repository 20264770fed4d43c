"""Calibration: inputs from files, folders or nothing, and statistics of what a network's weights read on them."""

from spa.calibration.contractions import contractions, readers
from spa.calibration.moments import HELD, MAX_FEATURES, Moments, measure
from spa.calibration.readers import Reader
from spa.calibration.sources import load, split_batches
from spa.calibration.standardize import restore, standardize
from spa.calibration.synthetic import Drawn
from spa.calibration.walk import Walk, open_session

__all__ = [
    "HELD",
    "MAX_FEATURES",
    "Drawn",
    "Moments",
    "Reader",
    "Walk",
    "contractions",
    "load",
    "measure",
    "open_session",
    "readers",
    "restore",
    "split_batches",
    "standardize",
]

"""Inputs of recorded calls that were not stored: normal numbers that depend on the name of the input only."""

import zlib

import numpy as np
import torch


def recorded_input(name, *shape, scale=1.0):
    rng = np.random.RandomState(zlib.crc32(("in:" + name).encode()) & 0xFFFFFFFF)
    return torch.from_numpy((rng.standard_normal(shape) * scale).astype(np.float32))

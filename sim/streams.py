"""Named random streams from one seed.

A stream is numpy's PCG64, seeded with the three words [CRC-32 of the name, seed, replication]. Names, not numbered
children: adding a stream changes no other. Always three words: numpy pads shorter seeds with zeros, so that other
shapes could coincide.
"""

from collections.abc import Callable
from zlib import crc32

import numpy as np


def streams(seed: int, replication: int = 0) -> Callable[[str], np.random.Generator]:
    """`streams(seed)("arrivals")` is a fresh generator of that name. Seed and replication from 0 to 2^32 - 1."""
    if not (0 <= seed < 2**32 and 0 <= replication < 2**32):
        raise ValueError(f"seed and replication must be from 0 to 2^32 - 1, got {seed} and {replication}")

    def stream(name: str) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([crc32(name.encode()), seed, replication])))

    return stream

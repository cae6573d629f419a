"""Seeds that keep runs, ranks and workers apart."""

import numpy as np

from diffpolicy.errors import ArgumentError

# Evaluations start from the same states in every run, whatever its seed.
EVALUATION_SEED = 1_000_003


def derive_seed(seed: int, *path: int) -> int:
    """Spread ``seed`` (and a path such as rank or worker index) over the 31-bit integers.

    The i-th environment of a batch has the seed ``seed + i``. Runs with neighbouring seeds, or
    ranks seeded ``seed + rank``, would therefore share almost all their environments. Hashing the
    seed first (``numpy.random.SeedSequence``) keeps the batches apart.

    Args:
        seed: any non-negative integer.
        *path: further non-negative integers that name the stream, for example ``rank``.

    Returns:
        An integer in ``[0, 2**31)``, the same for the same arguments on every machine.

    Raises:
        ArgumentError: a negative number was given.

    Example:
        >>> derive_seed(0) == derive_seed(0), derive_seed(0) == derive_seed(0, 1)
        (True, False)
    """
    for number in (seed, *path):
        if number < 0:
            raise ArgumentError("seed", number, f"must be a non-negative integer; try {-number}.")
    # The length is part of the entropy: SeedSequence itself ignores trailing zeros.
    words = np.random.SeedSequence([len(path), seed, *path]).generate_state(1)
    return int(words[0] >> 1)

import math

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from openfl_audio.protocol.values import BLOCK, distance


def test_a_distance_depends_on_no_order_no_cut_and_no_number_of_threads():
    rng = np.random.default_rng(0)
    pairs = [
        tuple(rng.normal(size=(2, length)).astype(np.float32)) for length in (7 * BLOCK + 7, 5, BLOCK, 99, 5 * BLOCK)
    ]
    expected = math.sqrt(math.fsum(math.fsum(np.square(b.astype(float) - a)) for a, b in pairs))
    found = distance(pairs)
    assert found == pytest.approx(expected, rel=1e-14)
    assert distance(reversed(pairs)) == found
    ends = (slice(0, 2 * BLOCK), slice(2 * BLOCK, None))
    cut = [(a[part], b[part]) for a, b in pairs for part in ends]
    assert distance(cut) == found
    for threads in (1, 2):
        with threadpool_limits(threads, "blas"):
            assert distance(pairs) == found

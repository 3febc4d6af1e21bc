import numpy as np
import pytest
from scipy.linalg import hadamard

from openfl_audio.privacy.rotation import ROW, Rotation


def test_a_rotation_is_hadamards_matrix_on_signed_values_and_is_undone():
    values = np.random.default_rng(0).normal(size=3 * ROW)
    rotation = Rotation(7, 2)
    turned = rotation.turn(values)
    signs = rotation._signs(0, 3 * ROW)
    assert {*signs} == {-1.0, 1.0}
    assert abs(signs.sum()) < 4 * np.sqrt(3 * ROW)
    expected = (values * signs).reshape(-1, ROW) @ hadamard(ROW) / np.sqrt(ROW)
    np.testing.assert_allclose(turned, expected.ravel(), atol=1e-12)
    assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(values), rel=1e-12)
    np.testing.assert_allclose(rotation.undo(turned), values, atol=1e-12)


def test_rows_may_be_turned_and_undone_by_themselves():
    values, rotation = np.random.default_rng(1).normal(size=4 * ROW), Rotation(0, 0)
    whole = rotation.turn(values)
    np.testing.assert_array_equal(rotation.turn(values[ROW : 3 * ROW], ROW), whole[ROW : 3 * ROW])
    np.testing.assert_allclose(rotation.undo(whole[3 * ROW :], 3 * ROW), values[3 * ROW :], atol=1e-12)


def test_signs_follow_from_seed_and_round():
    values = np.ones(ROW)
    first = Rotation(1, 2).turn(values)
    np.testing.assert_array_equal(Rotation(1, 2).turn(values), first)
    for other in (Rotation(2, 2), Rotation(1, 3)):
        assert not np.array_equal(other.turn(values), first)


@pytest.mark.parametrize("value", [1.0, 0.0], ids=["all alike", "one alone"])
def test_no_value_sticks_out_after_a_rotation(value):
    """Five deviations: of 4096 values one is beyond that with a probability of 0.02."""
    values = np.full(ROW, value)
    values[17] = 1.0
    turned = Rotation(3, 0).turn(values)
    assert np.abs(turned).max() < 5 * np.linalg.norm(values) / np.sqrt(ROW)

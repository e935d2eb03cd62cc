import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchcert.training.config import TrainingConfig
from patchcert.training.schedule import learning_rate_at


def rates(total_steps, **settings):
    config = TrainingConfig(learning_rate=0.4, **settings)
    return np.array([learning_rate_at(config, step, total_steps) for step in range(total_steps)])


@given(
    st.sampled_from(["one_cycle", "cosine", "steps", "constant"]),
    st.integers(1, 400),
    st.floats(0.01, 0.99),
)
def test_rates_lie_between_0_and_the_peak(schedule, total_steps, warmup_fraction):
    values = rates(total_steps, schedule=schedule, warmup_fraction=warmup_fraction)
    assert (values > 0).all()
    assert (values <= 0.4 * (1 + 1e-12)).all()


def test_constant():
    assert (rates(50, schedule="constant") == 0.4).all()


def test_cosine_falls_from_the_peak_to_nearly_nothing():
    values = rates(101, schedule="cosine")
    assert (np.diff(values) < 0).all()
    np.testing.assert_allclose(values[[0, 50, 100]], [0.4, 0.2 * (1 + 1e-4), 0.4e-4], rtol=1e-9)


@pytest.mark.parametrize("warmup_fraction", [0.15, 0.3, 0.5])
def test_one_cycle_rises_to_the_peak_and_falls(warmup_fraction):
    values = rates(201, schedule="one_cycle", warmup_fraction=warmup_fraction)
    peak = values.argmax()
    assert peak == round(200 * warmup_fraction)
    assert (np.diff(values[: peak + 1]) > 0).all()
    assert (np.diff(values[peak:]) < 0).all()
    np.testing.assert_allclose(values[[0, peak, -1]], [0.4 / 25, 0.4, 0.4e-4], rtol=1e-9)
    # Half way up and half way down a cosine is half way between its ends.
    np.testing.assert_allclose(values[peak // 2], 0.4 * (1 + 1 / 25) / 2, rtol=0.03)


@given(st.integers(1, 40), st.integers(1, 349), st.integers(1, 349))
def test_steps_fall_at_the_beginning_of_their_epochs(steps_per_epoch, one, other):
    first, second = sorted((one, other))
    values = rates(350 * steps_per_epoch, schedule="steps", milestones=(first / 350, second / 350))
    expected = 0.4 * np.array([0.1 ** ((epoch >= first) + (epoch >= second)) for epoch in range(350)])
    np.testing.assert_allclose(values.reshape(350, steps_per_epoch), expected[:, None].repeat(steps_per_epoch, axis=1))


def test_default_milestones_are_those_of_drs():
    """Golden: Levine & Feizi 2020, CIFAR-10: 350 epochs, a tenth after 150 and 250."""
    values = rates(3500, schedule="steps")
    assert np.flatnonzero(np.diff(values)).tolist() == [1499, 2499]
    np.testing.assert_allclose(np.unique(values), [0.004, 0.04, 0.4])

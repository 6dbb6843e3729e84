import pytest

from flax_resnet.training.schedules import make_schedule

PLAIN = {
  "name": "cosine",
  "peak": 0.4,
  "warmup": 0.0,
  "warmup_start": 0.0,
  "warmup_method": "linear",
  "boundaries": (),
  "decay_rate": 0.1,
  "power": 2.0,
  "final_rate": 0.0,
}


def rates(steps, num_steps=100, **changes):
  rate = make_schedule(num_steps, **(PLAIN | changes))
  return [float(rate(step)) for step in steps]


def near(*wanted):
  return pytest.approx(wanted, rel=1e-5, abs=1e-8)


def test_cosine_falls_to_its_final_rate():
  found = rates((0, 10, 20, 60, 100), warmup=0.2, final_rate=0.1)
  assert found == near(0, 0.2, 0.4, 0.22, 0.04)


def test_polynomial_is_that_of_mlperf():
  """Rises for 5 of 37 epochs, then (1 - t)^2 down to 1e-4 of 10."""
  steps = [round(e * 1000) for e in (0, 2.5, 5, 21, 29, 37, 40)]
  found = rates(
    steps,
    37_000,
    name="polynomial",
    peak=10.0,
    warmup=5 / 37,
    final_rate=1e-5,
  )
  fall = lambda left: 1e-4 + (10 - 1e-4) * left**2
  assert found == near(0, 5, 10, fall(0.5), fall(0.25), 1e-4, 1e-4)


def test_polynomial_has_any_power():
  found = rates((0, 50, 100), name="polynomial", power=3.0)
  assert found == near(0.4, 0.05, 0)


def test_one_cycle_rises_and_falls_along_straight_lines():
  """Whatever `power` is: it belongs to "polynomial"."""
  found = rates(
    (0, 10, 20, 40, 60, 100, 120), name="one_cycle", warmup=0.2, final_rate=0.25
  )
  assert found == near(0, 0.2, 0.4, 0.325, 0.25, 0.1, 0.1)


def test_a_warm_up_rises_from_where_it_starts():
  """From 0.1 to 3.2 in 5 of 90 epochs: Goyal et al. with batches of 8192."""
  found = rates((0, 25, 50), 900, peak=3.2, warmup=5 / 90, warmup_start=0.1)
  assert found == near(0.1, 1.65, 3.2)


def test_a_constant_warm_up_is_that_of_resnet_110():
  """Section 4.2: 0.01 for 400 steps, then 0.1 until 32,000 and 48,000."""
  steps = (0, 399, 400, 31_999, 32_000, 47_999, 48_000)
  found = rates(
    steps,
    64_000,
    name="step",
    peak=0.1,
    boundaries=(0.5, 0.75),
    warmup=400 / 64_000,
    warmup_start=0.01,
    warmup_method="constant",
  )
  assert found == near(0.01, 0.01, 0.1, 0.1, 0.01, 0.01, 0.001)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"warmup_start": -0.1}, "warmup_start is -0.1"),
    ({"warmup_start": float("inf")}, "warmup_start is inf"),
    ({"power": 0.0}, "power is 0.0"),
    ({"power": float("nan")}, "power is nan"),
    ({"final_rate": 1.1}, "final_rate is 1.1"),
    ({"final_rate": -0.1}, "final_rate is -0.1"),
    ({"name": "one_cycle"}, "warmup is 0.0, and one_cycle rises"),
  ],
)
def test_numbers_out_of_range_are_told(changes, message):
  with pytest.raises(ValueError, match=message):
    rates((0,), **changes)

import pytest

from flax_resnet.training.schedules import make_schedule

PLAIN = {
  "name": "cosine",
  "peak": 0.4,
  "warmup": 0.0,
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


@pytest.mark.parametrize(
  ("changes", "message"),
  [
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

import pytest

from flax_resnet.training.schedules import make_schedule

# Section and what is wanted: the rate after so many updates.
CASES = {
  "He et al. 2015: steps at 32,000 and 48,000 of 64,000": (
    {"learning_rate": 0.1, "boundaries": (0.5, 0.75)},
    64_000,
    {0: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001},
  ),
  "their ResNet-110: 0.01 for 400 steps": (
    {
      "learning_rate": 0.1,
      "boundaries": (0.5, 0.75),
      "warmup": 400 / 64_000,
      "warmup_start": 0.01,
      "warmup_method": "constant",
    },
    64_000,
    {0: 0.01, 399: 0.01, 400: 0.1, 31_999: 0.1, 32_000: 0.01, 48_000: 0.001},
  ),
  # 5 of 90 epochs of 100 steps up to 32 times the rate. Section 2.1.
  "Goyal et al. 2017, batches of 8192": (
    {
      "learning_rate": 3.2,
      "boundaries": (30 / 90, 60 / 90, 80 / 90),
      "warmup": 5 / 90,
      "warmup_start": 0.1,
    },
    9_000,
    {0: 0.1, 250: 1.65, 500: 3.2, 2999: 3.2, 3000: 0.32, 8000: 0.0032},
  ),
  "cosine": (
    {"schedule": "cosine", "learning_rate": 0.4},
    100,
    {0: 0.4, 50: 0.2, 100: 0},
  ),
  "cosine after a warm-up, to a tenth": (
    {
      "schedule": "cosine",
      "learning_rate": 0.4,
      "warmup": 0.2,
      "final_rate": 0.1,
    },
    100,
    {0: 0, 10: 0.2, 20: 0.4, 60: 0.22, 100: 0.04, 120: 0.04},
  ),
  # (1 - t)^2 after 5 of 37 epochs, down to 1e-4.
  "MLPerf's LARS": (
    {
      "schedule": "polynomial",
      "learning_rate": 10.0,
      "warmup": 5 / 37,
      "final_rate": 1e-5,
    },
    37_000,
    {0: 0, 2500: 5, 5000: 10, 21_000: 2.500075, 37_000: 1e-4, 40_000: 1e-4},
  ),
  "polynomial of another power": (
    {"schedule": "polynomial", "learning_rate": 0.4, "power": 3.0},
    100,
    {0: 0.4, 50: 0.05, 100: 0},
  ),
  "one cycle, whatever the power": (
    {
      "schedule": "one_cycle",
      "learning_rate": 0.4,
      "warmup": 0.2,
      "final_rate": 0.25,
      "power": 3.0,
    },
    100,
    {0: 0, 10: 0.2, 20: 0.4, 40: 0.325, 60: 0.25, 100: 0.1, 120: 0.1},
  ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_rate_follows_its_source(case):
  section, num_steps, wanted = CASES[case]
  rate = make_schedule(num_steps, **({"schedule": "step"} | section))
  found = {step: float(rate(step)) for step in wanted}
  assert found == pytest.approx(wanted, rel=1e-5, abs=1e-8)


SCHEDULES = {
  "cosine": {},
  "step": {"boundaries": (0.5, 0.75)},
  "polynomial": {},
  "one_cycle": {"warmup": 0.3},
}


@pytest.mark.parametrize("num_steps", [1, 2, 3])
@pytest.mark.parametrize("name", SCHEDULES)
def test_short_runs_have_a_rate(name, num_steps):
  """Also the step schedule, where both boundaries may be the same step."""
  section = {"schedule": name, "learning_rate": 0.4} | SCHEDULES[name]
  rate = make_schedule(num_steps, **section)
  rates = [float(rate(step)) for step in range(num_steps + 1)]
  assert all(0 <= r <= 0.4 + 1e-6 for r in rates)
  assert rates[-1] == pytest.approx(0.004 if name == "step" else 0, abs=1e-8)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 12])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_warmup_that_is_the_whole_run_is_refused(name, num_steps):
  section = {"schedule": name, "learning_rate": 0.4} | SCHEDULES[name]
  with pytest.raises(ValueError, match=rf"warmup is 0.97.* {num_steps} steps"):
    make_schedule(num_steps, **(section | {"warmup": 0.97}))

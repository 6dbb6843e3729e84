"""Policies do what torchvision's and timm's do: see `torch_policies`.

Live where these are installed, and else against what they gave.
"""

import collections
import importlib.util

import numpy as np
from PIL import Image
import pytest

from flax_resnet.data import policies
from tests.data import policy_cases as cases

CHANNELS = (1, 3)
SPACES = {
  "RandAugment": policies.RANDAUGMENT,
  "TrivialAugmentWide": policies.TRIVIALAUGMENT,
}


def need(*packages):
  for package in packages:
    if not importlib.util.find_spec(package):
      pytest.skip(f"{package} is not installed")


def ours(of, choice, level, sign=1):
  """Returns what a choice makes of a picture."""
  amount = sign * choice.amount(level, of.size)
  return distorted(of, choice, amount)


def distorted(of, choice, amount, fill=0):
  sampling = policies.Sampling(cases.METHOD, (fill,) * len(of.getbands()))
  return cases.pixels(choice.distortion(of, amount, sampling))


def assert_close(left, right, name):
  """A rounding of the amount may move a pixel by one."""
  assert np.abs(left.astype(int) - right).max() <= 1, name


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("name", SPACES)
def test_distortions_are_those_of_torchvision(name, channels):
  """The same pixels at the same amount, at all 31 magnitudes, either way."""
  need("torch", "torchvision")
  from tests.data import torch_policies

  of = cases.picture(channels)
  theirs = torch_policies.torchvision_choices(name, of.size)
  for choice, (key, (amounts, signed)) in zip(
    SPACES[name], theirs.items(), strict=True
  ):
    assert choice.signed == signed, key
    for number, amount in enumerate(amounts):
      for signed_amount in (amount, -amount) if signed else (amount,):
        np.testing.assert_array_equal(
          distorted(of, choice, whole(key, signed_amount), fill=9),
          torch_policies.torchvision_result(
            of, key, signed_amount, (9,) * channels
          ),
          f"{key} {signed_amount}",
        )
      level = number / max(len(amounts) - 1, 1)
      # Theirs are float32: just below 16 pixels, they shift by 15.
      assert choice.amount(level, of.size) == pytest.approx(
        whole(key, amount * (1 + 1e-6)), rel=1e-5
      ), key


def whole(key, amount):
  return int(amount) if key.startswith("Translate") else amount


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("name", SPACES)
def test_distortions_are_those_that_torchvision_gave(name, channels):
  of = cases.picture(channels)
  results = [
    ours(of, choice, number / 30)
    for choice in SPACES[name]
    for number in cases.BINS
  ]
  references = np.load(cases.REFERENCES)[f"{name}/{channels}"]
  for number, pair in enumerate(zip(results, references, strict=True)):
    assert_close(*pair, f"{number // len(cases.BINS)} of {name}")


def assert_as_timm(of, level, theirs):
  grey = of.mode == "L"
  for choice, both in zip(policies.INCREASING, theirs, strict=True):
    amount = choice.amount(level / 10, of.size)
    signs = (1, -1) if choice.signed else (1, 1)
    mine = [distorted(of, choice, sign * amount, fill=128) for sign in signs]
    # A translation starts in the other direction there.
    if (np.abs(mine[0].astype(int) - both[0]) > 1).any():
      mine.reverse()
    for pair in zip(mine, both, strict=True):
      assert_close(*pair, (choice.distortion.__name__, level, grey))


@pytest.mark.parametrize("channels", CHANNELS)
def test_increasing_distortions_are_those_of_timm(channels):
  need("torch", "torchvision", "timm")
  from tests.data import torch_policies

  of = cases.picture(channels)
  for level in np.arange(0, 10, 0.5):
    assert_as_timm(of, level, torch_policies.timm_results(of, level))


@pytest.mark.parametrize("channels", CHANNELS)
def test_increasing_distortions_are_those_that_timm_gave(channels):
  references = np.load(cases.REFERENCES)[f"timm/{channels}"]
  for level, theirs in zip(cases.LEVELS, references, strict=True):
    assert_as_timm(cases.picture(channels), level, theirs)


def test_no_bits_are_black():
  """The highest magnitude of timm's set, which newer Pillows refuse."""
  (choice,) = (
    choice
    for choice in policies.INCREASING
    if choice.distortion is policies.posterize
  )
  assert (ours(cases.picture(3), choice, 1.0) == 0).all()


def recorded(monkeypatch, name, **changes):
  """Returns a policy, and a list of (number of the choice, amount, method)."""
  done = []

  def choice(number, signed):
    def distortion(picture, amount, sampling):
      done.append((number, amount, sampling.method))
      return picture

    return policies.Choice(distortion, lambda level, size: level, signed)

  published = policies._PUBLISHED[name]
  choices = tuple(
    choice(number, each.signed) for number, each in enumerate(published.choices)
  )
  monkeypatch.setitem(
    policies._PUBLISHED, name, published._replace(choices=choices)
  )
  return policies.make_policy(name, channels=3, **changes), done


PIXELS = np.random.default_rng(1).integers(0, 256, (6, 5, 3), np.uint8)


def test_randaugment_draws_as_published(monkeypatch):
  """Two of 14, with replacement, one magnitude, either sign."""
  policy, done = recorded(monkeypatch, "randaugment", magnitude=12)
  rng = np.random.default_rng(0)
  for _ in range(2000):
    policy(PIXELS, rng)
  assert len(done) == 4000
  counts = collections.Counter(number for number, _, _ in done)
  assert len(counts) == 14
  assert all(abs(count - 4000 / 14) < 70 for count in counts.values())
  signs = collections.Counter(
    amount for number, amount, _ in done if policies.RANDAUGMENT[number].signed
  )
  assert set(signs) == {0.4, -0.4}
  assert abs(signs[0.4] / signs.total() - 0.5) < 0.04
  unsigned = {a for n, a, _ in done if not policies.RANDAUGMENT[n].signed}
  assert unsigned == {0.4}
  pairs = list(zip(done[::2], done[1::2], strict=True))
  twice = np.mean([first[0] == second[0] for first, second in pairs])
  assert 0.04 < twice < 0.11
  assert {method for _, _, method in done} == {Image.Resampling.NEAREST}


def test_trivialaugment_draws_as_published(monkeypatch):
  """One of 14, and each of 31 magnitudes as often as another."""
  policy, done = recorded(monkeypatch, "trivialaugment")
  rng = np.random.default_rng(0)
  for _ in range(3100):
    policy(PIXELS, rng)
  assert len(done) == 3100
  levels = collections.Counter(round(abs(a) * 30, 6) for _, a, _ in done)
  assert set(levels) == set(range(31))
  assert all(60 < count < 145 for count in levels.values())


def test_increasing_draws_as_published(monkeypatch):
  """rand-m7-mstd0.5-inc1: half are done, with noise, two interpolations."""
  policy, done = recorded(
    monkeypatch, "randaugment_increasing", magnitude=7, magnitude_std=0.5
  )
  rng = np.random.default_rng(0)
  for _ in range(4000):
    policy(PIXELS, rng)
  assert abs(len(done) / 8000 - 0.5) < 0.02
  assert len({number for number, _, _ in done}) == 15
  magnitudes = np.array([10 * abs(amount) for _, amount, _ in done])
  assert abs(magnitudes.mean() - 7) < 0.03
  assert abs(magnitudes.std() - 0.5) < 0.03
  methods = collections.Counter(method for _, _, method in done)
  assert set(methods) == {Image.Resampling.BILINEAR, Image.Resampling.BICUBIC}
  assert abs(methods[Image.Resampling.BICUBIC] / len(done) - 0.5) < 0.04


def test_noise_stays_within_the_range(monkeypatch):
  policy, done = recorded(
    monkeypatch, "randaugment", magnitude=30, magnitude_std=20.0, num_ops=100
  )
  policy(PIXELS, np.random.default_rng(0))
  amounts = np.abs([amount for _, amount, _ in done])
  assert amounts.min() >= 0
  assert amounts.max() == 1
  assert (amounts == 1).mean() < 0.9


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(
  "name", ["randaugment", "randaugment_increasing", "trivialaugment"]
)
def test_a_policy_is_a_function_of_its_generator(name, channels):
  policy = policies.make_policy(name, channels=channels)
  pixels = cases.pixels(cases.picture(channels))
  before = pixels.copy()

  def results(seed):
    rng = np.random.default_rng(seed)
    return np.stack([policy(pixels, rng) for _ in range(20)])

  one, other = results(0), results(1)
  assert one.shape[1:] == pixels.shape
  assert one.dtype == np.uint8
  np.testing.assert_array_equal(one, results(0))
  assert (one != other).any()
  np.testing.assert_array_equal(pixels, before)


def test_the_fill_is_seen_outside():
  white = np.full((20, 20, 3), 255, np.uint8)
  policy = policies.make_policy(
    "randaugment", channels=3, magnitude=30, fill=(1, 2, 3)
  )
  moved = [policy(white, np.random.default_rng(seed)) for seed in range(40)]
  assert any((image == (1, 2, 3)).all(-1).any() for image in moved)


def test_no_name_is_no_policy():
  assert policies.make_policy(None, channels=3) is None


@pytest.mark.parametrize(
  ("name", "changes", "message"),
  [
    ("randaugment", {"magnitude": -1}, "magnitude is -1: use 0 to 30"),
    ("randaugment", {"magnitude": 31}, "magnitude is 31: use 0 to 30"),
    ("randaugment_increasing", {"magnitude": 11}, "11: use 0 to 10"),
    ("randaugment", {"magnitude_std": -0.5}, "magnitude_std is -0.5"),
    ("randaugment", {"num_ops": 0}, "num_ops is 0: use 1 to 100"),
    ("randaugment", {"fill": (1, 2)}, r"fill is \(1, 2\): use 3 of 0 to 255"),
    ("randaugment", {"fill": (1, 2, 256)}, "use 3 of 0 to 255"),
    ("trivialaugment", {"magnitude": 5}, "leave out magnitude"),
    ("trivialaugment", {"magnitude_std": 0.5}, "leave out magnitude"),
  ],
)
def test_numbers_out_of_range_are_told(name, changes, message):
  with pytest.raises(ValueError, match=message):
    policies.make_policy(name, channels=3, **changes)

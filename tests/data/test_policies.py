"""Policies do what torchvision's and timm's do: see `torch_policies`."""

import collections

import numpy as np
from PIL import Image
import pytest

from flax_resnet.data import policies
from tests.data import policy_cases as cases

CHANNELS = (1, 3)
TORCHVISION = {
  "RandAugment": policies.RANDAUGMENT,
  "TrivialAugmentWide": policies.TRIVIALAUGMENT,
}


def apply(choice, image, amount, fill=0):
  """Returns the pixels that a choice makes of an image."""
  color = fill if image.mode == "L" else (fill,) * 3
  return cases.pixels(choice.operation(image, amount, cases.METHOD, color))


def assert_close(left, right, name):
  """A rounding of the amount may move a pixel by one."""
  assert np.abs(left.astype(int) - right).max() <= 1, name


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("name", TORCHVISION)
def test_operations_are_those_that_torchvision_gave(name, channels):
  image = cases.picture(channels)
  signed = [n for n, choice in enumerate(TORCHVISION[name]) if choice.signed]
  assert signed == list(range(1, 10))  # From ShearX to Sharpness.
  results = [
    apply(choice, image, choice.amount(number / 30, image.size))
    for choice in TORCHVISION[name]
    for number in cases.BINS
  ]
  references = np.load(cases.REFERENCES)[f"{name}/{channels}"]
  for number, pair in enumerate(zip(results, references, strict=True)):
    assert_close(*pair, f"{number // len(cases.BINS)} of {name}")


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("level", cases.LEVELS)
def test_increasing_operations_are_those_that_timm_gave(level, channels):
  image = cases.picture(channels)
  references = np.load(cases.REFERENCES)[f"timm/{channels}"]
  theirs = references[cases.LEVELS.index(level)]
  for number, (choice, both) in enumerate(
    zip(policies.INCREASING, theirs, strict=True)
  ):
    amount = choice.amount(level / 10, image.size)
    signs = (1, -1) if choice.signed else (1, 1)
    ours = [apply(choice, image, sign * amount, fill=128) for sign in signs]
    # A translation starts in the other direction there.
    if (np.abs(ours[0].astype(int) - both[0]) > 1).any():
      ours.reverse()
    for pair in zip(ours, both, strict=True):
      assert_close(*pair, number)


def test_no_bits_are_black():
  """The highest magnitude of timm's set, which newer Pillows refuse."""
  (choice,) = (
    choice
    for choice in policies.INCREASING
    if choice.operation is policies.posterize
  )
  image = cases.picture(3)
  assert (apply(choice, image, choice.amount(1.0, image.size)) == 0).all()


def drawn(monkeypatch, name, num_images, **changes):
  """Returns what a policy does: (number of the choice, amount, method)."""
  done = []

  def choice(number, signed):
    def operation(image, amount, method, fill):
      done.append((number, amount, method))
      return image

    return policies.Choice(operation, lambda level, size: level, signed)

  preset = policies.PRESETS[name]
  choices = tuple(
    choice(number, each.signed) for number, each in enumerate(preset.choices)
  )
  monkeypatch.setitem(policies.PRESETS, name, preset._replace(choices=choices))
  policy = policies.make_policy(name, num_channels=3, **changes)
  rng = np.random.default_rng(0)
  for _ in range(num_images):
    policy(np.zeros((6, 5, 3), np.uint8), rng)
  return done


def test_randaugment_draws_as_published(monkeypatch):
  """Two of 14, with replacement, one magnitude, either sign."""
  done = drawn(monkeypatch, "randaugment", 2000, policy_magnitude=12)
  assert len(done) == 4000
  counts = collections.Counter(number for number, _, _ in done)
  assert len(counts) == 14
  assert all(abs(count - 4000 / 14) < 70 for count in counts.values())
  signed = [choice.signed for choice in policies.RANDAUGMENT]
  signs = collections.Counter(a for n, a, _ in done if signed[n])
  assert set(signs) == {0.4, -0.4}
  assert abs(signs[0.4] / signs.total() - 0.5) < 0.04
  assert {a for n, a, _ in done if not signed[n]} == {0.4}
  pairs = zip(done[::2], done[1::2], strict=True)
  assert 0.04 < np.mean([one[0] == other[0] for one, other in pairs]) < 0.11
  assert {method for _, _, method in done} == {Image.Resampling.NEAREST}


def test_trivialaugment_draws_as_published(monkeypatch):
  """One of 14, and each of 31 magnitudes as often as another."""
  done = drawn(monkeypatch, "trivialaugment", 3100)
  assert len(done) == 3100
  levels = collections.Counter(round(abs(a) * 30, 6) for _, a, _ in done)
  assert set(levels) == set(range(31))
  assert all(60 < count < 145 for count in levels.values())


def test_increasing_draws_as_published(monkeypatch):
  """rand-m7-mstd0.5-inc1: half are done, with noise, two interpolations."""
  options = {"policy_magnitude": 7.0, "policy_magnitude_std": 0.5}
  done = drawn(monkeypatch, "randaugment_increasing", 4000, **options)
  assert abs(len(done) / 8000 - 0.5) < 0.02
  assert len({number for number, _, _ in done}) == 15
  magnitudes = np.array([10 * abs(amount) for _, amount, _ in done])
  assert abs(magnitudes.mean() - 7) < 0.03
  assert abs(magnitudes.std() - 0.5) < 0.03
  methods = collections.Counter(method for _, _, method in done)
  assert set(methods) == {Image.Resampling.BILINEAR, Image.Resampling.BICUBIC}
  assert abs(methods[Image.Resampling.BICUBIC] / len(done) - 0.5) < 0.04


def test_noise_stays_within_the_range(monkeypatch):
  options = {
    "policy_magnitude": 30.0,
    "policy_magnitude_std": 20.0,
    "policy_num_ops": 100,
  }
  done = drawn(monkeypatch, "randaugment", 1, **options)
  amounts = np.abs([amount for _, amount, _ in done])
  assert amounts.min() >= 0
  assert amounts.max() == 1
  assert (amounts == 1).mean() < 0.9


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(
  "name",
  ["randaugment", "randaugment_increasing", "trivialaugment", "augmix"],
)
def test_a_policy_is_a_function_of_its_generator(name, channels):
  policy = policies.make_policy(name, num_channels=channels)
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
    "randaugment", num_channels=3, policy_magnitude=30, fill=(1, 2, 3)
  )
  moved = [policy(white, np.random.default_rng(seed)) for seed in range(40)]
  assert any((image == (1, 2, 3)).all(-1).any() for image in moved)


def test_augmix_draws_as_published(monkeypatch):
  """Three chains of one to three operations, of the lowest three levels."""
  done = drawn(monkeypatch, "augmix", 1000)
  assert abs(len(done) / 1000 - 6) < 0.2
  assert len({number for number, _, _ in done}) == 13
  levels = collections.Counter(round(abs(a) * 9, 6) for _, a, _ in done)
  assert set(levels) == {0, 1, 2}
  done = drawn(
    monkeypatch, "augmix", 10, policy_num_ops=2, policy_magnitude=1.0
  )
  assert (len(done), {amount for _, amount, _ in done}) == (60, {0.0})


def test_augmix_mixes_the_image_with_its_chains(monkeypatch):
  """Of chains that make it black, the image is left by a share of it."""
  black = policies.Choice(lambda image, *_: image.point(lambda value: 0))
  preset = policies.PRESETS["augmix"]._replace(choices=(black,))
  monkeypatch.setitem(policies.PRESETS, "augmix", preset)
  policy = policies.make_policy("augmix", num_channels=3)
  white = np.full((2, 2, 3), 255, np.uint8)
  rng = np.random.default_rng(0)
  shares = [policy(white, rng)[0, 0, 0] / 255 for _ in range(500)]
  assert np.histogram(shares, 4, (0, 1))[0].min() > 90  # Uniform: Beta(1, 1).
  plain = policies.Choice(policies.identity)
  preset = preset._replace(choices=(plain,))
  monkeypatch.setitem(policies.PRESETS, "augmix", preset)
  policy = policies.make_policy("augmix", num_channels=3)
  assert policy(white, rng).min() >= 254


@pytest.mark.deep
@pytest.mark.parametrize("channels", CHANNELS)
def test_operations_of_augmix_are_those_of_torchvision(channels):
  pytest.importorskip("tests.weights.torch_models").load_torchvision()
  autoaugment = pytest.importorskip("torchvision.transforms.autoaugment")
  image = cases.picture(channels)
  policy = autoaugment.AugMix()
  space = policy._augmentation_space(10, image.size[::-1])
  assert len(space) == len(policies.AUGMIX)
  for choice, (name, (amounts, signed)) in zip(
    policies.AUGMIX, space.items(), strict=True
  ):
    assert choice.signed == signed
    for level in range(10):
      amount = float(amounts.expand(10)[level])
      if name == "Posterize" and not amount:
        continue  # Newer Pillows refuse it, and torchvision with them.
      theirs = autoaugment._apply_op(
        image, name, amount, policy.interpolation, None
      )
      ours = apply(choice, image, choice.amount(level / 9, image.size))
      assert_close(ours, cases.pixels(theirs), f"{name} {level}")


@pytest.mark.parametrize(
  "options",
  [
    {"policy_magnitude": 2.5},
    {"policy_magnitude": 11.0},
    {"policy_magnitude_std": 0.5},
  ],
)
def test_a_severity_that_augmix_has_not(options):
  with pytest.raises(ValueError, match="use a whole policy_magnitude of 1 to"):
    policies.make_policy("augmix", num_channels=3, **options)

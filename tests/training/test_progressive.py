"""Images that grow in the course of a run."""

import itertools

import jax
import numpy as np
import pytest

from flax_resnet.training import train
from flax_resnet.training.log import describe
from flax_resnet.training.setup import prepare
from flax_resnet.errors import InputError
from tests.training.test_loop import assert_same_bits, final_state, train_to


@pytest.fixture
def growing(config):
  """Six steps: two on 4 pixels, one on 6, three on 8."""
  config.update(num_steps=6, log_every=1, eval_every=6, checkpoint_every=1)
  config.update(keep_checkpoints=9)
  config.data.early_image_sizes = ((0.34, 4), (0.5, 6))
  return config


def batches(config, mesh, first_step=0, count=8):
  run = prepare(config.to_dict(), mesh)
  return list(itertools.islice(run.train_batches(first_step), count))


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("random_crop", [False, True])
def test_the_size_is_a_function_of_the_step(
  growing, mesh, in_memory, random_crop
):
  growing.data.in_memory = in_memory
  growing.data.random_resized_crop = random_crop
  whole = batches(growing, mesh)
  sizes = [batch["image"].shape[1] for batch in whole]
  assert sizes == [4, 4, 6, 8, 8, 8, 8, 8]
  for first in (1, 2, 3, 5):
    for here, again in zip(
      whole[first:], batches(growing, mesh, first, 8 - first), strict=True
    ):
      np.testing.assert_array_equal(here["image"], again["image"])
  growing.data.early_image_sizes = ()
  for ours, plain in zip(whole, batches(growing, mesh), strict=True):
    np.testing.assert_array_equal(ours["label"], plain["label"])
    if ours["image"].shape == plain["image"].shape:
      np.testing.assert_array_equal(ours["image"], plain["image"])


def test_a_run_compiles_each_size_once_and_resumes_anywhere(
  growing, tmp_path, mesh, monkeypatch
):
  compiled = []
  compile_lowered = jax.stages.Lowered.compile

  def counted(self, *args, **kwargs):
    compiled.append(self)
    return compile_lowered(self, *args, **kwargs)

  with monkeypatch.context() as patch:
    patch.setattr(jax.stages.Lowered, "compile", counted)
    train(growing, tmp_path / "whole", mesh)
  assert len(compiled) == 3
  for stop in (2, 5):  # Where a size ends, and within one.
    train_to(growing, tmp_path / "parts", mesh, stop, monkeypatch)
  train(growing, tmp_path / "parts", mesh)
  assert_same_bits(
    final_state(growing, tmp_path / "whole", mesh),
    final_state(growing, tmp_path / "parts", mesh),
  )


@pytest.mark.parametrize(
  "sizes",
  [
    ((0.5, 4), (0.5, 6)),
    ((0.0, 4),),
    ((1.0, 4),),
    ((0.5, 4.5),),
    ((0.5, 0),),
    ((0.5,),),
    ((float("nan"), 4),),
  ],
)
def test_wrong_sizes_are_told(growing, mesh, sizes):
  growing.data.early_image_sizes = sizes
  with pytest.raises(InputError, match="early_image_sizes is"):
    prepare(growing.to_dict(), mesh)


def test_images_that_grow_are_not_kept_on_the_device(growing, mesh):
  growing.steps_per_call = 2
  with pytest.raises(InputError, match="early_image_sizes=\\(\\)"):
    prepare(growing.to_dict(), mesh)


def test_the_log_says_so(growing, mesh):
  run = prepare(growing.to_dict(), mesh)
  said = describe(run, run.initial_state())
  assert (
    "training images are of 4 pixels until step 2, of 6 pixels until step 3"
    in said
  )

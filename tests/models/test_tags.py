"""The table of published weights."""

import math
import time

import pytest

import flax_resnet as fr
from flax_resnet.models import tags


def test_the_table_has_all_that_timm_publishes_of_residual_nets():
  """150 tags of resnet.py, 24 of resnetv2.py, 8 of resnest.py: 109 networks."""
  published = {k: t for k, t in tags.published().items() if not t.folder}
  assert len(published) == 182
  assert len(tags.timm_models()) == 109
  for name, tag in published.items():
    assert tag.repository == f"timm/{name}" == f"timm/{tag.name}"
    assert (tag.top1 is None) == (tag.num_classes != 1000)
    assert tag.source.startswith(("https://", "arXiv:"))


@pytest.mark.parametrize("model", ["resnet50", "resnet18", "resnetrs50"])
def test_a_network_has_one_default_tag(model):
  of_model = [t for t in tags.published().values() if t.model == model]
  assert [t for t in of_model if t.default] == of_model[:1]
  assert tags.find(model) == of_model[0]


def test_a_row_says_what_timm_says():
  tag = tags.find("resnet50")
  assert tag.name == "resnet50.a1_in1k"
  assert (tag.image_size, tag.crop_fraction) == (224, 0.95)
  assert (tag.test_image_size, tag.test_crop_fraction) == (288, 1.0)
  assert (tag.interpolation, tag.license) == ("bicubic", "apache-2.0")
  assert tag.top1 == 81.24


def test_names_are_filtered_by_a_pattern():
  assert fr.list_models("resnet18") == ["resnet18"]
  names = fr.list_models("*50*")
  assert {"resnet50", "wide_resnet50_2", "resnext50_32x4d"} <= set(names)
  assert all("50" in name for name in names)
  assert fr.list_models("*zebra*") == []


def test_the_tags_are_those_of_the_networks_that_there_are():
  names, found = fr.list_models(), fr.list_models(pretrained=True)
  assert set(found) == {
    name for name, tag in tags.published().items() if tag.model in names
  }
  of_18 = fr.list_models("resnet18", pretrained=True)
  assert "resnet18.a1_in1k" in of_18
  assert {name.partition(".")[0] for name in of_18} == {"resnet18"}
  assert fr.list_models("*.fb_ssl*", pretrained=True)


def test_a_tag_is_a_network_without_weights():
  assert fr.create_model("resnet50.a1_in1k") == fr.create_model("resnet50")
  assert fr.create_model("resnet50.bamboo").num_classes == 0
  assert fr.create_model("resnet50.bamboo", num_classes=7).num_classes == 7


def test_the_lists_are_there_at_once():
  """`benchmarks/startup.py` measures that of the tags, 3 ms."""

  def seconds():
    start = time.perf_counter()
    fr.list_models()
    return time.perf_counter() - start

  assert min(seconds() for _ in range(5)) < 0.01


def test_weights_in_the_package_are_listed_first():
  """A folder each, with its recipe and accuracy."""
  packaged = {k: t for k, t in tags.published().items() if t.folder}
  assert packaged.keys() == {p.name for p in tags.PACKAGED.iterdir()}
  assert fr.list_models(pretrained=True)[: len(packaged)] == list(packaged)
  tag = packaged["cifar_resnet8.digits"]
  assert (tag.num_classes, tag.image_size, tag.repository) == (10, 16, "")
  assert tag.fields == {"stage_features": (32, 64, 128)}
  assert tags.find("cifar_resnet8") == tag
  model = fr.create_model("cifar_resnet8.digits")
  assert model.stage_features == (32, 64, 128)


@pytest.mark.parametrize("test", [False, True])
def test_the_short_sides_are_those_of_timm(test):
  """Rounded down, 235 for 224 of 0.95."""
  from flax_resnet.weights.preprocessing import Preprocessing

  for tag in tags.published().values():
    size = tag.test_image_size if test else tag.image_size
    share = tag.test_crop_fraction if test else tag.crop_fraction
    found = Preprocessing(size, share, tag.interpolation, tag.mean, tag.std)
    assert found.short_side == math.floor(size / share)

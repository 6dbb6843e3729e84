"""The committed table of tags against the installed timm."""

import csv
import importlib.util

import pytest

from flax_resnet.models import tags


@pytest.mark.deep
def test_the_table_is_what_the_installed_timm_knows():
  if importlib.util.find_spec("timm") is None:
    pytest.skip("timm is not installed")
  from tests.weights import timm_tags

  with tags.TABLE.open(newline="") as file:
    committed = list(csv.DictReader(file))
  found = [
    {column: str(row.get(column, "")) for column in committed[0]}
    for row in timm_tags.rows({})
  ]
  for row in (*committed, *found):
    for column in timm_tags.FROM_RESULTS:
      row.pop(column)
  assert committed == found

import pytest

from flax_resnet.errors import (
  each_reported_as,
  InputError,
  listing,
  reported_as,
  suggestion,
)


@pytest.mark.parametrize("kind", [ValueError, OSError, UnicodeError])
def test_a_wrong_value_is_reported_as_one_line_with_where_it_is_from(kind):
  with pytest.raises(InputError) as error, reported_as("config.data"):
    raise kind("two\n  lines")
  assert str(error.value) == "config.data: two lines"
  assert isinstance(error.value.__cause__, kind)


@pytest.mark.parametrize("kind", [KeyError, BrokenPipeError, InputError])
def test_other_exceptions_pass(kind):
  with pytest.raises(kind) as error, reported_as("config.data"):
    raise kind("oops")
  assert "config.data" not in str(error.value)


def test_reading_items_is_reported_item_by_item():
  items = each_reported_as("config.data", map(int, ["1", "2", "x"]))
  assert [next(items), next(items)] == [1, 2]
  with pytest.raises(InputError, match="config.data: invalid literal"):
    next(items)


def test_a_close_name_is_suggested_or_else_all_are_named():
  assert suggestion("rset", ["reset", "list"]) == "did you mean 'reset'?"
  assert suggestion("zebra", ["reset", "list"]) == "use reset, list"


def test_long_lists_are_cut():
  assert listing("abc") == "a, b, c"
  assert listing("abcdef", limit=2) == "a, b and 4 more"

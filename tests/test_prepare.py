import functools
import importlib.util

import pytest

from flax_resnet import __main__ as verbs


@pytest.fixture
def run(call_main):
  return functools.partial(call_main, verbs.main)


def test_prepare_digits(tmp_path, run):
  arguments = ["prepare", "digits", "--data-dir", str(tmp_path)]
  code, out, err = run(*arguments)
  assert (code, err) == (0, "")
  assert out == f"{tmp_path}/digits/1.0.0: train 1,437, test 360\n"


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "required: VERB"),
    (["prepar"], "invalid choice: 'prepar'"),
    (["prepare"], "required: name"),
    (["prepare", "cifar10", "--dir=x"], "--dir=x is not a flag"),
  ],
)
def test_wrong_arguments(run, arguments, message):
  code, _, err = run(*arguments)
  assert code == 2
  assert message in err
  assert err.count("\n") == 1


def test_without_tensorflow_prepare_says_what_to_install(
  tmp_path, monkeypatch, run
):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  arguments = ["prepare", "cifar10", "--data-dir", str(tmp_path)]
  code, _, err = run(*arguments)
  assert code == 2
  assert "pip install 'flax_resnet[prepare]'" in err
  assert err.count("\n") == 1

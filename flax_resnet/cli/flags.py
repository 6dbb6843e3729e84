"""The flags that commands share, what they stand for, and how a command ends.

What is slow to import is imported when it is used: `--help` needs none of it,
and Ctrl-C while JAX is imported ends a command as at any other time.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import io
import logging
import os
import pathlib
import signal
import sys
import traceback
import types
from typing import Any, NoReturn
import warnings

from etils import epy

from flax_resnet import bucket, recipes, schema, storage
from flax_resnet.errors import InputError, reported_as, RunError
from flax_resnet.training.stop import Stopped

with epy.lazy_imports():
  import jax

  from flax_resnet import hosts, models, predictor
  from flax_resnet.training import setup
  from flax_resnet.weights import files, preprocessing, pretrained, remote

# Characters of an error that are printed; a value in it may have millions.
MAX_ERROR_LENGTH = 1_500
# Endings of file formats of this field: what is so called is taken for one.
_FORMATS = (
  ".bin .ckpt .engine .gguf .gz .h5 .hdf5 .json .keras .mlir .mlmodel "
  ".mlpackage .msgpack .npy .npz .onnx .ort .pb .pbtxt .pickle .pkl .plan .pt "
  ".pt2 .pte .pth .safetensors .stablehlo .tar .tflite .th .torchscript .trt "
  ".zip"
)
_PACKAGE = pathlib.Path(__file__).parents[1]
_formatwarning = warnings.formatwarning


class Parser(argparse.ArgumentParser):
  """A parser whose errors are InputErrors."""

  def error(self, message: str) -> NoReturn:
    raise InputError(f"{message}: see {self.prog} --help")

  def parse_with_overrides(self) -> argparse.Namespace:
    """Returns the flags; `overrides` are the "key=value" of "--config.key".

    A command may have a default `elsewhere`: flags of other programs, and what
    they are here.
    """
    args, others = self.parse_known_args()
    prefix = "--config."
    for before, other in zip(["", *others], others, strict=False):
      if not other.startswith(prefix):
        if before.startswith(prefix) and "=" not in before:
          raise InputError(f"{before} has no value: write {before}={other}")
        flag = other.partition("=")[0]
        spelled = flag.replace("_", "-").lower()
        if ours := getattr(args, "elsewhere", {}).get(spelled):
          raise InputError(f"{flag} is here {ours}")
        verb = getattr(args, "verb", None)
        if verb is None:
          self.error(f"{other} is not a flag")
        raise InputError(
          f"{other} is not a flag of {verb}: see {self.prog} {verb} --help"
        )
    args.overrides = [other.removeprefix(prefix) for other in others]
    return args


def place(text: str) -> pathlib.Path | bucket.Url:
  """Returns the path, or the URL of a bucket, that a flag gives."""
  text = place_or_name(text)
  return bucket.Url(text) if bucket.is_url(text) else path(text)


def place_or_name(text: str) -> str:
  """Returns a text that may be a path, a URL of a bucket, or a name."""
  return _of(bucket.LOCATION, text)


def path(text: str) -> pathlib.Path:
  """Returns the path that a flag gives; ~ is the home, as in a shell."""
  return pathlib.Path(os.path.expanduser(local(text)))


def local(text: str) -> str:
  """Returns a text that may be a path of this machine, and is no URL."""
  return _of(schema.Location(), text)


def _of(location: schema.Location, text: str) -> str:
  if not text:  # argparse says of which flag.
    raise argparse.ArgumentTypeError(f"it is empty: give {location}")
  if text not in location:
    raise argparse.ArgumentTypeError(f"{text} is a URL: give {location}")
  return text


def add_network_arguments(
  parser: argparse.ArgumentParser,
  config_help: str = "recipe that the weights were trained by, for the "
  "options of the network and what is done to images",
  several: bool = False,
) -> None:
  """Adds the flags that name a trained network, or `several`: then lists."""
  number: Any = {"nargs": "+"} if several else {}
  parser.add_argument(
    "--workdir",
    type=place,
    metavar="DIR|URL",
    help="folder of a run",
    **number,
  )
  parser.add_argument(
    "--checkpoint",
    default="newest",
    metavar="best|STEP",
    help="which one of the run; the newest by default",
  )
  parser.add_argument(
    "--weights",
    type=place_or_name,
    metavar="FILE|URL|TAG",
    help="a published tag (resnet50.a1_in1k), .safetensors, .pth, a Flax "
    "checkpoint, one of a run's or hf-hub:owner/repository",
    **number,
  )
  add_ema_argument(parser)
  parser.add_argument("--model", metavar="NAME", help="network of the weights")
  parser.add_argument(
    "--config", type=place, metavar="FILE|URL", help=config_help
  )


def add_ema_argument(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--no-ema",
    dest="ema",
    action="store_false",
    help="the weights of the last step, where their moving average is there "
    "as well",
  )


def check_network_arguments(args: argparse.Namespace) -> None:
  """Raises InputError unless the flags name one trained network."""
  if (args.workdir is None) == (args.weights is None):
    raise InputError("give either --workdir or --weights")
  for flag in ("model", "config"):
    if args.workdir is not None and getattr(args, flag) is not None:
      raise InputError(f"--{flag} is that of --weights: a run says its own")
  if args.workdir is None and args.checkpoint != "newest":
    raise InputError("--checkpoint is one of a run: give its --workdir")


def weights_of(args: argparse.Namespace) -> str | pathlib.Path:
  """Returns the checkpoint of the run, or the weights, that the flags name.

  Raises:
    InputError: if there is no such run or checkpoint.
  """
  check_network_arguments(args)
  if args.workdir is None:
    return args.weights
  workdir = local_run(args.workdir, args.checkpoint)
  storage.read_config(workdir)  # A folder that is no run ends here.
  with reported_as("--workdir"):
    return files.find_checkpoint(workdir, args.checkpoint)


def local_run(
  workdir: pathlib.Path | bucket.Url, checkpoint: str = "newest"
) -> pathlib.Path:
  """Returns a workdir, or a copy of one in a bucket, with a checkpoint."""
  if isinstance(workdir, pathlib.Path):
    return workdir
  with reported_as("--workdir"):
    return remote.fetch_run(workdir, checkpoint)


def local_recipe(config: pathlib.Path | bucket.Url) -> pathlib.Path:
  """Returns a recipe, or a copy of the config.json of a run in a bucket."""
  if isinstance(config, pathlib.Path):
    return config
  with reported_as("--config"):
    return remote.fetch_config(config)


def load_predictor(args: argparse.Namespace) -> "predictor.Predictor":
  """Returns the trained network that the flags name, ready for images."""
  weights = weights_of(args)
  with reported_as("--weights" if args.workdir is None else "--workdir"):
    return predictor.Predictor.of(_load_weights(args, weights))


def _load_weights(
  args: argparse.Namespace, weights: str | pathlib.Path
) -> "pretrained.Pretrained":
  if args.config is None:
    check_model_is_given(weights, args.model)
    return pretrained.load_pretrained(weights, args.model, ema=args.ema)
  overrides = [] if args.model is None else [f"model.name={args.model}"]
  recipe = local_recipe(args.config)
  config = recipes.load_recipe(recipe, overrides).to_dict()
  return dataclasses.replace(
    load_weights_of_recipe(args.weights, config, ema=args.ema),
    preprocessing=preprocessing.Preprocessing.of_run(config),
  )


def load_weights_of_recipe(
  weights: str | pathlib.Path, config: Mapping[str, Any], *, ema: bool = True
) -> "pretrained.Pretrained":
  """Returns weights in the network of a config, with their own classes.

  Args:
    weights: as `load_pretrained` takes them.
    config: config of a run.
    ema: whether to take a moving average, as `load_pretrained` does.

  Raises:
    InputError: for a config whose sections cannot be.
    WeightsError: if the weights cannot be read or are not of this network.
  """
  recipe = schema.build("config", setup.Recipe, config)
  fields = {k: v for k, v in recipe.model.items() if k != "num_classes"}
  schema.build(
    "config.model", models.create_model, fields, fields_of=models.ResNet
  )
  return pretrained.load_pretrained(
    weights, fields.pop("name"), ema=ema, **fields
  )


def check_model_is_given(
  weights: str | pathlib.Path, model: str | None
) -> None:
  """Raises InputError unless --model or the weights name the network."""
  if model is None and pretrained.find(weights).model is None:
    raise InputError(
      f"{weights} does not say of which network: give --model NAME"
    )


def check_is_new(path: pathlib.Path) -> None:
  """Raises InputError unless OUT can be written without loss."""
  if path.exists():
    raise InputError(f"{path} is there already: choose another OUT")
  if not path.absolute().parent.is_dir():
    raise InputError(f"{path.parent} is not a folder: make it first")


def check_ending(path: pathlib.Path, written: Sequence[str], what: str) -> None:
  """Raises InputError if OUT has the ending of a format that is not written.

  Args:
    path: the OUT.
    written: endings of the formats that are.
    what: says which they are, "export writes ONNX".
  """
  ending = path.suffix.lower()
  if ending in _FORMATS.split() and not path.name.lower().endswith(
    tuple(written)
  ):
    use = f"end OUT in {' or '.join(written)}" if written else "leave it out"
    raise InputError(f"{path}: {what}, and no {ending}: {use}")


def check_is_positive(flag: str, value: int) -> None:
  """Raises InputError unless the number that a flag gives is 1 or more."""
  if value < 1:
    raise InputError(f"{flag} is {value}: use 1 or more")


def enable_compilation_cache() -> None:
  """Keeps compiled programs for the next command.

  They are in ~/.cache/flax_resnet/xla (or below XDG_CACHE_HOME), unless JAX's
  own JAX_COMPILATION_CACHE_DIR names another folder;
  JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.
  """
  config: Any = jax.config  # Its options are attributes at run time only.
  if config.jax_compilation_cache_dir is not None:
    return
  caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  folder = pathlib.Path(caches, "flax_resnet", "xla")
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError:
    return  # A home that cannot be written: compile anew each time.
  if os.access(folder, os.W_OK):
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
  """Ends the process with one sentence and a code for errors in its block.

  1 when a run has failed or another host is gone, 2 after a wrong input, 130
  after Ctrl-C, 143 after SIGTERM. An error that is a mistake of this package
  keeps its traceback.
  """
  _silence_libraries()
  # The name of a file may hold what is no text, and is printed nevertheless.
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="backslashreplace")
  try:
    yield
    if _is_one_of_several():
      hosts.finish()
  except InputError as error:
    _fail(error, 2)
  except RunError as error:
    _fail(error, 1)
  except Stopped as stop:
    print(stop, file=sys.stderr)
    if _is_one_of_several():
      hosts.finish()
    sys.exit(stop.exit_code)
  except BrokenPipeError:
    # The reader of a pipe has seen enough, such as `head`. What Python still
    # has to flush goes nowhere.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if _is_one_of_several():
      _fail("the reader of its output is gone", 128 + signal.SIGPIPE)
    sys.exit(128 + signal.SIGPIPE)
  except Exception as error:
    if _is_one_of_several():
      hosts.give_way()
    if (explanation := _explanation(error)) is not None:
      _fail(explanation, 1)
    if not _is_one_of_several():
      raise
    traceback.print_exc()
    _fail(f"{type(error).__name__}: {error}", 1)
  except KeyboardInterrupt:
    if _is_one_of_several():
      _fail("interrupted: nothing was in progress", 128 + signal.SIGINT)
    print("interrupted: nothing was in progress", file=sys.stderr)
    sys.exit(128 + signal.SIGINT)


def printable(text: str) -> str:
  """Returns text with escapes for new lines and for what steers a terminal.

  Names of files and of classes come from others, and may hold anything.
  """
  return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def print_error(error: object) -> None:
  print(f"error: {_one_line(error)}", file=sys.stderr, flush=True)


def _one_line(message: object) -> str:
  line = printable(bucket.shown(" ".join(str(message).split())))
  if len(line) > MAX_ERROR_LENGTH:
    return f"{line[:MAX_ERROR_LENGTH]}…"
  return line


def _fail(error: object, code: int) -> NoReturn:
  if _is_one_of_several():
    hosts.exit_after_failure(str(error), code)
  print_error(error)
  sys.exit(code)


def _explanation(error: Exception) -> str | None:
  """Returns a sentence on an error of the machine; None for any other."""
  first = (str(error).splitlines() or [type(error).__name__])[0][:200]
  if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
    return (
      f"there is not enough memory ({first}): a run takes less with a smaller "
      "config.batch_size, config.accumulate=2 or config.model.remat=True"
    )
  if _is_one_of_several() and isinstance(error, jax.errors.JaxRuntimeError):
    return (
      f"another host is gone ({first}): start all again, and the run "
      "continues from its last checkpoint"
    )
  return None


def _is_one_of_several() -> bool:
  """Returns whether this process computes together with others."""
  return "flax_resnet.hosts" in sys.modules and hosts.several()


def _silence_libraries() -> None:
  """Silences what libraries print beside the sentence of this package."""
  # TFDS and Orbax warn of what they then do rightly: a set to be downloaded, a
  # half-written checkpoint to be removed; and Orbax logs the errors of its
  # threads, which it raises as well.
  logging.getLogger("absl").setLevel(logging.CRITICAL)
  sys.unraisablehook = _unraisable
  # Pillow, of odd files, which are then read rightly or refused by a sentence.
  logging.getLogger("PIL").setLevel(logging.CRITICAL)
  warnings.filterwarnings("ignore", module=r"PIL\.")
  warnings.formatwarning = _format_warning
  # What reads buckets, of each answer that it will ask for again.
  for name in ("gcsfs", "s3fs", "fsspec", "aiobotocore", "botocore"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  # What reads the hub, of each time that it will try again.
  logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
  # matplotlib, of a font that has one weight.
  logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
  # Python's tracker, a process, of shared memory that Grain frees a moment too
  # late, and which it then frees.
  ours, others = "ignore:resource_tracker", os.environ.get("PYTHONWARNINGS")
  if not others:
    os.environ["PYTHONWARNINGS"] = ours
  elif ours not in others:  # Else it would grow with every call in a process.
    os.environ["PYTHONWARNINGS"] = f"{others},{ours}"
  # Orbax, when it fails, of what it had begun with, and what it had not.
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)
  warnings.filterwarnings("ignore", "coroutine .* was never awaited")


def _unraisable(error: Any) -> None:
  """Python's hook, without what Orbax had begun when something else failed."""
  # TensorStore's threads meet it after Orbax has failed with another error.
  late = str(error.exc_value) == "Event loop is closed"
  if not late and not isinstance(error.object, types.CoroutineType):
    sys.__unraisablehook__(error)


def _format_warning(
  message: Warning | str,
  category: type[Warning],
  filename: str,
  lineno: int,
  line: str | None = None,
) -> str:
  """Returns a warning of this package as one line, others as Python does."""
  if pathlib.Path(filename).is_relative_to(_PACKAGE):
    return f"warning: {_one_line(message)}\n"
  return _formatwarning(message, category, filename, lineno, line)

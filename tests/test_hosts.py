"""Several processes on 127.0.0.1, of one or two devices each, are one run.

Where the run itself does not matter, they only join, and then do one line of
Python: it is the start that costs.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
from PIL import Image
import pytest

import flax_resnet
from flax_resnet import bucket, hosts, storage
from flax_resnet.training import train
from flax_resnet.training.workdir import locked
from flax_resnet.weights import files
from tests import recipes
from tests.drawing import variables_of
from tests.runs import assert_same_bits, mesh_of, rows_of

CHANGES = {
  **recipes.ONE_BLOCK,
  **recipes.FEW_DIGITS,
  "num_steps": 6,
  "log_every": 2,
  "eval_every": 3,
  "checkpoint_every": 2,
  "keep_checkpoints": 9,
}


@pytest.fixture
def recipe(tmp_path, data_dir):
  return recipes.write_tiny(tmp_path, data_dir, **CHANGES)


@pytest.fixture
def weights(tmp_path):
  """A file of weights with 7 classes."""
  model = flax_resnet.create_model(
    "cifar_resnet8", stage_sizes=(1,), stage_features=(4,), num_classes=7
  )
  path = tmp_path / "weights.safetensors"
  variables = variables_of(model, (1, 8, 8, 1))
  files.write(path, flax_resnet.to_torch(variables, model))
  return path


def free_address():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def start():
  """Starts Python with arguments; what still runs at the end is killed.

  If the tests themselves are killed, it ends after ten minutes of CPU time.
  """
  started = []

  def start(*arguments, devices=1, environ=(), limits="ulimit -t 600"):
    xla_flags = re.sub(
      r"device_count=\d+", f"device_count={devices}", os.environ["XLA_FLAGS"]
    )

    started.append(
      subprocess.Popen(
        # Without `preexec_fn`, for which Python would fork.
        [
          *("sh", "-c", f'{limits} && exec "$@"', "sh"),
          *(sys.executable, *map(str, arguments)),
        ],
        cwd=recipes.ROOT,
        env={
          **os.environ,
          "PYTHONPATH": str(recipes.ROOT),
          # Compiled in two thirds of the time.
          "XLA_FLAGS": f"{xla_flags} --xla_backend_optimization_level=0",
          **dict(environ),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
    return started[-1]

  yield start
  for process in started:
    process.kill()
    process.communicate()


@pytest.fixture
def launch(start, recipe):
  """Starts so many processes of a run.

  `each` has, by process: flags, devices, arguments of `start`, and `patch`,
  Python to be run before.
  """

  def launch(count, workdir, *flags, devices=2, each=None):
    address, each = free_address(), each or {}
    return [
      start(
        *("-c", RUN, each.get(process, {}).get("patch", "")),
        *(f"--config={recipe}", f"--workdir={workdir}", *flags),
        *each.get(process, {}).get("flags", ()),
        f"--coordinator={address}",
        f"--num_processes={count}",
        f"--process_id={process}",
        devices=each.get(process, {}).get("devices", devices),
        **each.get(process, {}).get("start", {}),
      )
      for process in range(count)
    ]

  return launch


RUN = """
import os, sys
patch = sys.argv.pop(1)
exec(patch)
import train
train.main()
"""

JOIN = """
import os, socket, sys, time
from flax_resnet import hosts
from flax_resnet.cli.flags import exit_codes, print_error
from flax_resnet.errors import InputError, RunError
coordinator, count, process, then = sys.argv[1:]
with exit_codes():
  hosts.join_hosts(print_error, coordinator, int(count), int(process))
  exec(then)
"""
SLEEP = "time.sleep(60)"
KILL = "time.sleep(1); os.kill(os.getpid(), 9)"


@pytest.fixture
def join(start):
  """Starts processes that join, and then each do a line of Python."""

  def join(*lines, devices=1):
    address = free_address()
    return [
      start("-c", JOIN, address, len(lines), process, line, devices=devices)
      for process, line in enumerate(lines)
    ]

  return join


def ends_of(processes, cause):
  """Returns codes and sentences; each ends soon after `cause`, if given.

  The sentence is the only line, but for what JAX logs as it is lost itself.
  """
  if cause is not None:
    processes[cause].wait(timeout=240)
  caused, ends = time.monotonic(), []
  for process in processes:
    _, err = process.communicate(timeout=240)
    assert "Traceback" not in err
    sentences = re.findall(r"^(?:error|interrupted): .*", err, re.MULTILINE)
    assert len(sentences) <= 1
    ends.append((process.returncode, "".join(sentences)))
  assert cause is None or time.monotonic() - caused < 10
  return ends


def gone(process):
  return (
    1,
    f"error: process {process} is gone: start all again, and the run continues "
    "from its last checkpoint",
  )


def finish(processes):
  """Waits for them and returns what each has printed."""
  outputs = [process.communicate(timeout=240) for process in processes]
  for process, (out, err) in zip(processes, outputs, strict=True):
    assert process.returncode == 0, out + err
  return [out for out, _ in outputs]


def assert_same_curves(one, other):
  assert [row["step"] for row in one] == [row["step"] for row in other]
  for mine, theirs in zip(one, other, strict=True):
    assert mine == pytest.approx(theirs, abs=1e-4)


def back_to(step, workdir, copy):
  """Copies a run as it was when `step` had just been saved."""
  shutil.copytree(workdir, copy)
  (copy / "summary.json").unlink()
  for later in storage.checkpoint_steps(copy / "checkpoints"):
    if later > step:
      shutil.rmtree(copy / "checkpoints" / str(later))
  return copy


# All that touches the state where a run starts or continues.
TOGETHER = {
  "ema_decay": 0.9,
  "accumulate": 2,
  "model.norm_group_size": 16,
  "steps_per_call": 2,
}


def test_two_processes_of_one_device_are_one_run(
  launch, weights, tmp_path, data_dir
):
  """From weights with a new head; then on from what they have saved."""
  values = {"init_from": str(weights), **TOGETHER}
  flags = [f"--config.{key}={value}" for key, value in values.items()]
  two, copy, one = (tmp_path / name for name in ("two", "copy", "one"))
  out, silent = finish(launch(2, two, *flags, devices=1))
  assert f"starts from the weights of {weights}, with a new head" in out
  assert "on 2 x cpu" in out
  assert "step" not in silent
  config = recipes.changed(recipes.tiny(data_dir), {**CHANGES, **values})
  train(config, one, mesh_of(2))
  assert_same_curves(rows_of(two), rows_of(one))
  assert rows_of(two)[-1]["val/count"] == 72
  assert {path.name for path in two.iterdir()} == {
    path.name for path in one.iterdir()
  }
  weights.unlink()
  out, _ = finish(launch(2, back_to(2, two, copy), *flags, devices=1))
  assert "continues after step 2" in out
  assert rows_of(copy) == rows_of(two)


@pytest.mark.deep
def test_two_hosts_make_the_run_of_one(launch, tmp_path, data_dir):
  """Of two devices each; one goes on with what two have saved."""
  out, silent = finish(launch(2, tmp_path / "two"))
  assert "on 4 x cpu" in out
  assert "step" not in silent
  config = recipes.changed(recipes.tiny(data_dir), CHANGES)
  train(config, tmp_path / "one", mesh_of(4))
  whole = rows_of(tmp_path / "one")
  assert_same_curves(rows_of(tmp_path / "two"), whole)
  copy = back_to(2, tmp_path / "two", tmp_path / "copy")
  train(config, copy, mesh_of(4))
  assert_same_curves(rows_of(copy), whole)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_two_hosts_train_a_head_alone(
  launch, weights, tmp_path, data_dir, devices
):
  """With the head of the weights, and saved so that two go on with it."""
  values = {"init_from": str(weights), "freeze_trunk": True, "ema_decay": 0.9}
  flags = [f"--config.{key}={value}" for key, value in values.items()]
  run, alone = tmp_path / "two", tmp_path / "one"
  finish(launch(2, run, *flags, devices=devices))
  config = recipes.changed(recipes.tiny(data_dir), {**CHANGES, **values})
  train(config, alone, mesh_of(2 * devices))
  assert_same_curves(rows_of(run), rows_of(alone))
  copy = back_to(2, run, tmp_path / "copy")
  finish(launch(2, copy, *flags, devices=devices))
  assert rows_of(copy) == rows_of(run)


@pytest.mark.deep
def test_two_hosts_of_one_device_read_a_folder(launch, tmp_path, data_dir):
  rng = np.random.default_rng(0)
  for name in ("a", "b"):
    (tmp_path / "photos" / name).mkdir(parents=True)
    for number in range(20):
      pixels = rng.integers(0, 256, (12, 10, 3), np.uint8)
      path = tmp_path / "photos" / name / f"{number}.png"
      Image.fromarray(pixels).save(path)
  values = {
    "data.root": str(tmp_path / "photos"),
    "data.name": "folder",
    "data.train_split": "train[:80%]",
    "data.eval_split": "train[80%:]",
    "data.in_memory": False,
    "augment.mean": (0.5, 0.5, 0.5),
    "augment.std": (0.5, 0.5, 0.5),
    "model.num_classes": 2,
    "batch_size": 8,
  }
  flags = [f"--config.{key}={value}" for key, value in values.items()]
  flags.append("--config.data.num_workers=1")
  finish(launch(2, tmp_path / "two", *flags, devices=1))
  config = recipes.changed(recipes.tiny(data_dir), {**CHANGES, **values})
  train(config, tmp_path / "one", mesh_of(2))
  assert_same_curves(rows_of(tmp_path / "two"), rows_of(tmp_path / "one"))


@pytest.mark.slow
def test_four_hosts_go_on_with_what_two_have_saved(launch, tmp_path):
  finish(launch(2, tmp_path / "two"))
  whole = rows_of(tmp_path / "two")
  copy = back_to(4, tmp_path / "two", tmp_path / "copy")
  out, *_ = finish(launch(4, copy))
  assert "on 8 x cpu" in out
  assert "continues after step 4" in out
  assert_same_curves(rows_of(copy), whole)


BUCKET = """
from flax_resnet import bucket
from tests import buckets
bucket.open_filesystem = lambda url: buckets.folder_bucket({root!r})
"""


@pytest.mark.deep
def test_two_hosts_each_have_a_copy_of_a_bucket(launch, tmp_path):
  """The first writes; both read what is there to go on."""
  finish(launch(2, tmp_path / "two"))
  patch = {"patch": BUCKET.format(root=str(tmp_path))}
  both = {"each": {0: patch, 1: patch}}
  finish(launch(2, "gs://bucket/run", **both))
  run, folder = tmp_path / "bucket" / "run", tmp_path / "two"
  assert rows_of(run) == rows_of(folder)
  names = {"checkpoints", "config.json", "metrics.jsonl", "summary.json"}
  assert names <= {path.name for path in run.iterdir()}
  for step in (4, 6):
    (run / "checkpoints" / str(step) / bucket.MARKER).unlink()
  (run / "summary.json").unlink()
  out, silent = finish(launch(2, "gs://bucket/run", **both))
  assert "continues after step 2" in out and "step" not in silent
  assert rows_of(run) == rows_of(folder)
  assert_same_bits(files.read_checkpoint(run), files.read_checkpoint(folder))


@pytest.mark.slow
def test_two_hosts_end_where_another_run_is(launch, tmp_path):
  """Only the first looks at the lock."""
  with locked(tmp_path / "run"):
    for code, line in ends_of(launch(2, tmp_path / "run"), None):
      assert code == 2
      assert f"is in use by another run (process {os.getpid()} on " in line


def wait_for_step(workdir, step):
  for _ in range(1200):
    path = workdir / "metrics.jsonl"
    if path.exists() and f'"step": {step},' in path.read_text():
      return
    time.sleep(0.1)
  raise TimeoutError


DEEP = pytest.mark.deep
LONG = ("--config.num_steps=100000", "--config.log_every=1")


@pytest.mark.deep
@pytest.mark.parametrize(
  ("signum", "codes"),
  [(signal.SIGTERM, (143, 143)), (signal.SIGINT, (143, 130))],
)
def test_a_signal_to_one_host_stops_all_at_one_step(
  launch, tmp_path, signum, codes
):
  processes = launch(2, tmp_path / "run", *LONG)
  wait_for_step(tmp_path / "run", 10)
  processes[1].send_signal(signum)
  lasts = []
  for process, code in zip(processes, codes, strict=True):
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    lasts.append(err.splitlines()[-1])
  assert lasts[0] == lasts[1]
  assert lasts[0].endswith("which is saved: the same command continues")
  step = int(lasts[0].split()[3].rstrip(","))
  assert (tmp_path / "run" / "checkpoints" / str(step)).is_dir()


# What is done by train.py on the process that is then killed.
MOMENTS = {
  "compile": "from flax_resnet.training import steps\n"
  "steps.CompiledByShape.__call__ = lambda *_: os.kill(os.getpid(), 9)",
  "step": "from flax_resnet.training import loop\n"
  "loop.check_finite = lambda *_: os.kill(os.getpid(), 9)",
  "evaluation": "from flax_resnet.training import loop\n"
  "def evaluate(run, state, batches):\n"
  "  next(batches)\n"
  "  os.kill(os.getpid(), 9)\n"
  "loop.evaluate = evaluate",
  "save": "from flax_resnet.training.checkpoint import Checkpoints\n"
  "save = Checkpoints.save\n"
  "def save_and_end(*args):\n"
  "  save(*args)\n"
  "  os.kill(os.getpid(), 9)\n"
  "Checkpoints.save = save_and_end",
}


@pytest.mark.parametrize(
  ("moment", "victim", "count", "devices"),
  [
    pytest.param("compile", 0, 2, 1, marks=pytest.mark.deep),
    pytest.param("evaluation", 1, 2, 1, marks=pytest.mark.deep),
    *(
      pytest.param(moment, victim, 2, devices, marks=pytest.mark.slow)
      for moment in MOMENTS
      for victim in (0, 1)
      for devices in (1, 2)
    ),
    pytest.param("step", 0, 4, 1, marks=pytest.mark.slow),
    pytest.param("save", 3, 4, 2, marks=pytest.mark.slow),
  ],
)
def test_a_host_that_is_killed_in_a_run_ends_the_others(
  launch, tmp_path, moment, victim, count, devices
):
  each = {victim: {"patch": MOMENTS[moment]}}
  run = launch(count, tmp_path / "run", *LONG, devices=devices, each=each)
  ends = ends_of(run, victim)
  assert ends.pop(victim)[0] == -signal.SIGKILL
  assert set(ends) == {gone(victim)}


@pytest.mark.slow
def test_a_run_that_has_lost_a_host_continues(launch, tmp_path):
  processes = launch(2, tmp_path / "run", *LONG)
  wait_for_step(tmp_path / "run", 10)
  processes[1].kill()
  assert ends_of(processes, 1)[0] == gone(1)
  launch(2, tmp_path / "run", *LONG)
  wait_for_step(tmp_path / "run", rows_of(tmp_path / "run")[-1]["step"] + 5)
  steps = [row["step"] for row in rows_of(tmp_path / "run")]
  assert steps == list(range(1, len(steps) + 1))


COLLECTIVES = """
from jax.experimental import multihost_utils
while True:
  multihost_utils.sync_global_devices("again")
"""


# JAX aborts a process at once when the first is gone.
SLOW = (
  "hosts._watch._report = lambda text: (time.sleep(1), print_error(text))\n"
)


@pytest.mark.parametrize(
  "lines",
  [
    pytest.param((KILL, SLOW + SLEEP), id="first"),
    pytest.param((SLEEP, KILL), id="second"),
  ],
)
def test_a_host_that_is_killed_ends_the_other(join, lines):
  """While it waits without an end, and without an error."""
  victim = lines.index(KILL)
  ends = ends_of(join(*lines), victim)
  assert ends.pop(victim)[0] == -signal.SIGKILL
  assert ends == [gone(victim)]


@pytest.mark.deep
@pytest.mark.parametrize(("victim", "devices"), [(0, 1), (3, 2)])
def test_a_host_that_is_killed_ends_three_others(join, victim, devices):
  """Two that wait, and one that computes."""
  lines = [SLEEP, COLLECTIVES, SLEEP, SLEEP]
  lines[victim] = KILL
  lines = [f"hosts.jax.devices()\n{line}" for line in lines]
  ends = ends_of(join(*lines, devices=devices), victim)
  assert ends.pop(victim)[0] == -signal.SIGKILL
  assert set(ends) == {gone(victim)}


@pytest.mark.deep
def test_a_child_does_not_hide_that_its_parent_is_gone(join):
  orphan = (
    "if os.fork() == 0: os.closerange(0, 3), time.sleep(15), os._exit(0)\n"
  )
  assert ends_of(join(SLEEP, orphan + KILL), 1)[0] == gone(1)


@pytest.mark.deep
def test_whoever_else_connects_ends_nothing(join):
  stranger = (
    "port = hosts._watch._sockets[0].getsockname()[1]\n"
    "for said in (b'', b'x 1\\n', b'\\xff' * 999):\n"
    "  with socket.create_connection(('127.0.0.1', port)) as each:\n"
    "    each.sendall(said)\n"
    "time.sleep(1)"
  )
  assert [code for code, _ in ends_of(join(stranger, "pass"), None)] == [0, 0]


@pytest.mark.parametrize(
  ("failing", "line", "own", "theirs"),
  [
    (0, "raise InputError('no')", (2, "error: no"), 2),
    pytest.param(1, "raise RunError('no')", (1, "error: no"), 1, marks=DEEP),
    pytest.param(1, "raise KeyboardInterrupt", (130, ""), 1, marks=DEEP),
  ],
)
def test_a_host_that_fails_says_why_on_the_other(
  join, failing, line, own, theirs
):
  lines = [SLEEP, SLEEP]
  lines[failing] = line
  ends = ends_of(join(*lines), None)
  code, said = ends.pop(failing)
  assert (code, said) == own or (code, said[-8:]) == (130, "progress")
  said = said.removeprefix("error: ")
  assert ends == [(theirs, f"error: process {failing} has ended: {said}")]


@pytest.mark.deep
def test_a_mistake_of_this_package_keeps_its_traceback(join):
  failing, other = join("1 / 0", SLEEP)
  _, err = failing.communicate(timeout=60)
  assert failing.returncode == 1
  assert "Traceback" in err
  reason = "process 0 has ended: ZeroDivisionError: division by zero"
  assert ends_of([other], 0) == [(1, f"error: {reason}")]


@pytest.mark.deep
def test_hosts_that_fail_alike_each_say_so(join):
  ends = ends_of(join(*3 * ["raise RunError(f'no {process}')"]), None)
  assert ends == [(1, f"error: no {process}") for process in range(3)]


@pytest.mark.deep
def test_hosts_may_end_one_after_the_other(join):
  assert ends_of(join("pass", "time.sleep(2)"), 1) == [(0, ""), (0, "")]


def test_hosts_of_different_recipes_end_with_the_keys(launch, tmp_path):
  """Before anything is computed or written."""
  flags = ("--config.seed=3", "--config.num_steps=7", "--config.ema_decay=0.0")
  run = launch(2, tmp_path / "run", devices=1, each={1: {"flags": flags}})
  sentence = (
    "error: config.num_steps is 7 on process 1 and 6 on process 0, config.seed "
    "is 3 on process 1 and 0 on process 0: start all with the same command"
  )
  assert ends_of(run, None) == [(2, sentence)] * 2
  assert not (tmp_path / "run").exists()


@pytest.mark.deep
@pytest.mark.parametrize(
  ("process", "flags", "sentence"),
  [
    (0, ["--config.seeed=1"], "config.seeed is unknown"),
    (
      1,
      ["--config.data.name=folder", "--config.data.root=/nowhere"],
      "config.data",
    ),
  ],
)
def test_a_host_that_refuses_its_recipe_ends_the_other(
  launch, tmp_path, process, flags, sentence
):
  run = launch(2, tmp_path / "run", each={process: {"flags": flags}})
  ends = ends_of(run, process)
  code, own = ends[process]
  assert (code, own[: 7 + len(sentence)]) == (2, f"error: {sentence}")
  said = own.removeprefix("error: ")
  assert ends[1 - process] == (
    2,
    f"error: process {process} has ended: {said}",
  )


@pytest.mark.deep
def test_hosts_of_different_numbers_of_devices_end(launch, tmp_path):
  run = launch(2, tmp_path / "run", each={0: {"devices": 3}, 1: {"devices": 1}})
  for code, line in ends_of(run, None):
    assert code == 2
    assert "process 0 has 3 devices and process 1 has 1: " in line


NO_SPACE = """
from flax_resnet import storage
def fail(directory):
  raise OSError(28, "No space left on device")
storage.write_digests = fail
"""


@pytest.mark.deep
@pytest.mark.parametrize(
  ("process", "reason"), [(0, "No space left"), (1, "File too large")]
)
def test_a_host_that_cannot_write_ends_the_other(
  launch, tmp_path, process, reason
):
  """Process 0 fails where all have written, 1 where it writes its part."""
  each = {
    0: {"patch": NO_SPACE},
    1: {"start": {"limits": "ulimit -f 1"}},  # Blocks of 512 or 1,024 bytes.
  }
  run = launch(2, tmp_path / "run", *LONG, each={process: each[process]})
  ends = ends_of(run, process)
  code, own = ends[process]
  assert (code, own.startswith("error: no checkpoint can be written to ")) == (
    1,
    True,
  ), own
  assert reason in own
  said = own.removeprefix("error: ")
  assert ends[1 - process] == (
    1,
    f"error: process {process} has ended: {said}",
  )


@pytest.mark.parametrize(
  ("environ", "several"),
  [
    ({}, False),
    ({"SLURM_NTASKS": "8"}, False),  # A shell within an allocation.
    ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, False),
    ({"SLURM_NTASKS": "8", "SLURM_PROCID": "3"}, True),
    ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}, True),
  ],
)
def test_launchers_are_known_by_their_variables(monkeypatch, environ, several):
  for name in ("SLURM_NTASKS", "SLURM_PROCID", "OMPI_COMM_WORLD_SIZE"):
    monkeypatch.delenv(name, raising=False)
  for name, value in environ.items():
    monkeypatch.setenv(name, value)
  started = []
  monkeypatch.setattr(
    hosts.jax.distributed, "initialize", lambda *args, **_: started.append(args)
  )
  hosts.join_hosts(print)
  assert started == ([(None, None, None)] if several else [])


@pytest.mark.parametrize(
  ("environ", "flags", "sentence"),
  [
    (
      {"SLURM_NTASKS": "2", "SLURM_PROCID": "0"},
      ("None", "None", "None"),
      "srun",
    ),
    (
      {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
      ("None", "None", "None"),
      "--process_id $OMPI_COMM_WORLD_RANK",
    ),
    (
      {},
      ("'{taken}'", "2", "0"),
      "--coordinator is {taken}, where process 0 cannot",
    ),
    ({}, ("'{free}'", "2", "0"), "not all processes have come within 2 s: "),
    pytest.param(
      *({}, ("'{free}'", "2", "1"), "not all processes have come within 2 s: "),
      marks=DEEP,
    ),
  ],
)
def test_hosts_that_do_not_find_each_other(start, environ, flags, sentence):
  """The launcher does not say where process 0 is; a wrong port; no other."""
  with socket.create_server(("127.0.0.1", 0)) as server:
    addresses = {
      "taken": f"127.0.0.1:{server.getsockname()[1]}",
      "free": free_address(),
    }
    code = f"""
from flax_resnet import hosts
from flax_resnet.cli.flags import exit_codes, print_error
hosts.START_SECONDS = 2
with exit_codes():
  hosts.join_hosts(print_error, {", ".join(flags).format(**addresses)})
"""
    ((code, line),) = ends_of([start("-c", code, environ=environ)], None)
  assert code == (1 if "not all" in sentence else 2)
  assert sentence.format(**addresses) in line

"""A training step on CPU whose convolutions are PyTorch's: oneDNN's.

    pip install torch onednn-cpu-gomp
    python benchmarks/onednn.py resnet20-32 resnet18-128

Tells what XLA's own convolutions cost. The step is ours to the last operation,
but its convolutions call oneDNN (version 3, by its C interface) through XLA's
foreign function interface. "Memory kept": malloc gives nothing back to the
system, from which XLA else gets the memory of each step anew, page by page.
For Linux on x86; a measurement, and no part of the package.
"""

import argparse
import ctypes
from ctypes import c_int, c_int64, c_size_t, c_uint32, c_void_p, POINTER
import functools
import json
import os
import pathlib
import sys
import threading

from train_step import Case, CASES, measure, ours, pytorch, show, versions
from turns import Work

# How long a waiting thread of oneDNN's spins. By default it would be so long
# that it takes a core from XLA's threads.
SPINS = "2000"
# oneDNN's dnnl_types.h.
F32, ANY_LAYOUT, TRAINING, DIRECT, CPU, IN_ORDER = 3, 1, 64, 1, 1, 1
X, KERNEL, Y, X_GRADIENT, KERNEL_GRADIENT, Y_GRADIENT = 1, 33, 17, 129, 161, 145
KERNEL_LAYOUT, KERNEL_GRADIENT_LAYOUT = 131, 132
FROM, TO = 1, 17
ALLOCATE = c_void_p(-1)
# Of each part what is read and, last, what is written.
PARTS = {
  "output": {"x": X, "kernel": KERNEL, "y": Y},
  "input gradient": {"y": Y_GRADIENT, "kernel": KERNEL, "x": X_GRADIENT},
  "weight gradient": {"x": X, "y": Y_GRADIENT, "kernel": KERNEL_GRADIENT},
}
# XLA's c_api.h: how a handler is asked for the version that it was written for.
METADATA = 1
# glibc's malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX.
KEEP_MEMORY = {-4: 0, -1: 2**31 - 1, -8: 1}


@functools.cache
def onednn() -> ctypes.CDLL:
  os.environ["GOMP_SPINCOUNT"] = SPINS
  name = "libdnnl.so.3"
  installed = pathlib.Path(sys.prefix, "lib", name)
  library = ctypes.CDLL(str(installed) if installed.exists() else name)
  library.dnnl_primitive_desc_query_md.restype = c_void_p
  return library


def call(function: str, *args) -> None:
  if status := getattr(onednn(), f"dnnl_{function}")(*args):
    raise RuntimeError(f"dnnl_{function} returned {status}")


def make(function: str, *args) -> c_void_p:
  """Calls a function that writes a handle to its first argument."""
  handle = c_void_p()
  call(function, ctypes.byref(handle), *args)
  return handle


@functools.cache
def engine() -> c_void_p:
  return make("engine_create", CPU, c_size_t(0))


@functools.cache
def stream() -> c_void_p:
  return make("stream_create", engine(), IN_ORDER)


def numbers(values):
  return (c_int64 * len(values))(*values)


def layout(shape, axes) -> c_void_p:
  """A row-major array whose axes oneDNN counts in another order."""
  strides = [1]
  for size in reversed(shape[1:]):
    strides.insert(0, strides[0] * size)
  return make(
    "memory_desc_create_with_strides",
    *(len(axes), numbers([shape[axis] for axis in axes]), F32),
    numbers([strides[axis] for axis in axes]),
  )


class Argument(ctypes.Structure):
  _fields_ = (("kind", c_int), ("memory", c_void_p))


class Primitive:
  """An operation of oneDNN's and the memories that it works on."""

  def __init__(self, description: c_void_p, memories: dict[int, c_void_p]):
    self.handle = make("primitive_create", description)
    arguments = (Argument(kind, memories[kind]) for kind in memories)
    self.arguments = (Argument * len(memories))(*arguments)

  def __call__(self) -> None:
    arguments = len(self.arguments), self.arguments
    call("primitive_execute", self.handle, stream(), *arguments)


class Convolution:
  """A part of a convolution of given shapes, all in XLA's layouts.

  oneDNN chooses the layout that it wants the kernel in: it is reordered.
  """

  def __init__(self, part, x, kernel, y, strides, padding):
    layouts = {
      "x": layout(x, (0, 3, 1, 2)),
      "kernel": layout(kernel, (3, 2, 0, 1)),
      "y": layout(y, (0, 3, 1, 2)),
    }
    memories = {
      name: make("memory_create", each, engine(), None)
      for name, each in layouts.items()
    }
    self.outside = [memories[name] for name in PARTS[part]]
    self.lock = threading.Lock()
    description, queried = self._describe(
      part, layouts, kernel, strides, padding
    )
    wanted = c_void_p(
      onednn().dnnl_primitive_desc_query_md(description, queried, 0)
    )
    convolve_first = part == "weight gradient"
    inside = memories["kernel"]
    if not onednn().dnnl_memory_desc_equal(wanted, layouts["kernel"]):
      inside = make("memory_create", wanted, engine(), ALLOCATE)
    arguments = {kind: memories[name] for name, kind in PARTS[part].items()}
    arguments[PARTS[part]["kernel"]] = inside
    self.run = [Primitive(description, arguments)]
    if inside is not memories["kernel"]:
      ends = [(layouts["kernel"], memories["kernel"]), (wanted, inside)]
      if convolve_first:
        self.run.append(_reorder(*reversed(ends)))
      else:
        self.run.insert(0, _reorder(*ends))

  def _describe(self, part, layouts, kernel, strides, padding):
    sizes = numbers([kernel[axis] for axis in (3, 2, 0, 1)])
    free = make("memory_desc_create_with_tag", 4, sizes, F32, ANY_LAYOUT)
    x, y = layouts["x"], layouts["y"]
    before, after = (numbers([pair[i] for pair in padding]) for i in (0, 1))
    geometry = numbers(strides), numbers((0, 0)), before, after
    forward = make(
      "convolution_forward_primitive_desc_create",
      *(engine(), TRAINING, DIRECT, x, free, None, y, *geometry, None),
    )
    if part == "output":
      return forward, KERNEL_LAYOUT
    if part == "input gradient":
      return make(
        "convolution_backward_data_primitive_desc_create",
        *(engine(), DIRECT, x, free, y, *geometry, forward, None),
      ), KERNEL_LAYOUT
    return make(
      "convolution_backward_weights_primitive_desc_create",
      *(engine(), DIRECT, x, free, None, y, *geometry, forward, None),
    ), KERNEL_GRADIENT_LAYOUT

  def __call__(self, *pointers: int) -> None:
    with self.lock:
      for memory, pointer in zip(self.outside, pointers, strict=True):
        call("memory_set_data_handle", memory, c_void_p(pointer))
      for primitive in self.run:
        primitive()


def _reorder(source, target) -> Primitive:
  (from_layout, from_memory), (to_layout, to_memory) = source, target
  description = make(
    "reorder_primitive_desc_create",
    *(from_layout, engine(), to_layout, engine(), None),
  )
  return Primitive(description, {FROM: from_memory, TO: to_memory})


def structure(name: str, *fields):
  """A structure of XLA's c_api.h, all of which begin with two fields."""
  head = ("size", c_size_t), ("extension", c_void_p)
  return type(name, (ctypes.Structure,), {"_fields_": [*head, *fields]})


Version = structure("Version", ("major", c_int), ("minor", c_int))
Api = structure("Api", ("version", Version))
Buffer = structure("Buffer", ("dtype", c_int), ("data", c_void_p))
Buffers = structure(
  "Buffers",
  ("count", c_int64),
  ("types", c_void_p),
  ("each", POINTER(POINTER(Buffer))),
)
Attributes = structure(
  "Attributes",
  ("count", c_int64),
  ("types", c_void_p),
  ("names", c_void_p),
  ("each", POINTER(c_void_p)),
)
Frame = structure(
  "Frame",
  ("api", POINTER(Api)),
  ("context", c_void_p),
  ("stage", c_int),
  ("read", Buffers),
  ("written", Buffers),
  ("attributes", Attributes),
)


class Metadata(ctypes.Structure):
  _fields_ = (("size", c_size_t), ("version", Version), ("traits", c_uint32))


class Extension(ctypes.Structure):
  _fields_ = (
    ("size", c_size_t),
    ("kind", c_int),
    ("next", c_void_p),
    ("metadata", POINTER(Metadata)),
  )


class Text(ctypes.Structure):
  _fields_ = (("characters", c_void_p), ("length", c_size_t))


@functools.cache
def convolution_of(specification: bytes) -> Convolution:
  return Convolution(*json.loads(specification))


@ctypes.CFUNCTYPE(c_void_p, POINTER(Frame))
def handler(pointer):
  """What XLA calls. An exception would be lost here: it ends the process."""
  try:
    frame = pointer.contents
    if frame.extension:
      extension = ctypes.cast(frame.extension, POINTER(Extension)).contents
      if extension.kind == METADATA:
        theirs = frame.api.contents.version
        version = extension.metadata.contents.version
        version.major, version.minor = theirs.major, theirs.minor
        return
    text = ctypes.cast(frame.attributes.each[0], POINTER(Text)).contents
    convolution = convolution_of(ctypes.string_at(text.characters, text.length))
    buffers = frame.read.each[0], frame.read.each[1], frame.written.each[0]
    convolution(*(buffer.contents.data for buffer in buffers))
  except BaseException as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(1)


@functools.cache
def convolver():
  """Returns a function of x, kernel, strides and padding, as XLA's."""
  import jax
  from jax import lax
  import jax.numpy as jnp

  capsule = jax.ffi.pycapsule(ctypes.cast(handler, c_void_p))
  jax.ffi.register_ffi_target("onednn", capsule, platform="cpu")

  def part(name, written, *read, **shapes):
    result = jax.ShapeDtypeStruct(shapes[written], jnp.float32)
    text = json.dumps((name, *shapes.values()))
    return jax.ffi.ffi_call("onednn", result)(*read, specification=text)

  def shapes_of(x, kernel, strides, padding):
    y = jax.eval_shape(
      lambda x, kernel: lax.conv_general_dilated(
        *(x, kernel, strides, padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
      ),
      *(x, kernel),
    )
    return dict(
      x=x.shape,
      kernel=kernel.shape,
      y=y.shape,
      strides=strides,
      padding=padding,
    )

  @functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
  def convolve(x, kernel, strides, padding):
    shapes = shapes_of(x, kernel, strides, padding)
    return part("output", "y", x, kernel, **shapes)

  def forward(x, kernel, strides, padding):
    return convolve(x, kernel, strides, padding), (x, kernel)

  def backward(strides, padding, kept, dy):
    x, kernel = kept
    shapes = shapes_of(x, kernel, strides, padding)
    return (
      part("input gradient", "x", dy, kernel, **shapes),
      part("weight gradient", "kernel", x, dy, **shapes),
    )

  convolve.defvjp(forward, backward)
  return convolve


def check(convolve) -> None:
  """Raises AssertionError unless all parts are XLA's, to rounding."""
  import jax
  import numpy as np

  rng = np.random.default_rng(0)
  shapes = (4, 9, 9, 16), (3, 3, 16, 32), (4, 5, 5, 32)
  x, kernel, dy = (rng.normal(size=s).astype("float32") for s in shapes)
  geometry = (2, 2), ((1, 1), (1, 1))

  def parts(conv):
    y, pull_back = jax.vjp(lambda *args: conv(*args, *geometry), x, kernel)
    return y, *pull_back(dy)

  xla = functools.partial(
    jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  for each, wanted in zip(parts(convolve), parts(xla), strict=True):
    np.testing.assert_allclose(each, wanted, rtol=1e-4, atol=1e-3)


def with_onednn(case: Case) -> Work:
  """Our step with oneDNN's convolutions, fenced off as XLA's are."""
  import jax

  from flax_resnet.models import operations

  convolve = convolver()
  check(convolve)

  def conv(x, kernel, strides, padding, **others):
    del others  # The nets that are measured have neither groups nor dilation.
    x = jax.lax.optimization_barrier(x)
    pads = tuple(map(tuple, padding))
    y = convolve(x, kernel, tuple(strides), pads)
    return jax.lax.optimization_barrier(y)

  operations.conv = conv
  return ours(case)


def keeping_memory(make_work, case: Case) -> Work:
  """Before the process has threads, whose memory would be apart."""
  for option, value in KEEP_MEMORY.items():
    if not ctypes.CDLL(None).mallopt(option, value):
      raise RuntimeError(f"mallopt does not take {option}")
  return make_work(case)


eager = functools.partial(pytorch, compiled=False)
CONTENDERS = {
  "ours": ours,
  "ours, oneDNN": with_onednn,
  "ours, oneDNN, memory kept": functools.partial(keeping_memory, with_onednn),
  "ours, memory kept": functools.partial(keeping_memory, ours),
  "pytorch eager": eager,
  "pytorch eager, memory kept": functools.partial(keeping_memory, eager),
}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("cases", nargs="*", help=", ".join(CASES))
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--seconds", type=float, default=3)
  flags = parser.parse_args()
  print(versions())
  for name in flags.cases or CASES:
    show(measure(CASES[name], CONTENDERS, flags.rounds, flags.seconds))


if __name__ == "__main__":
  main()

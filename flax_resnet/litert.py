"""From a traced program to LiteRT (.tflite), for phones and small devices.

`litert-converter` reads StableHLO, so that TensorFlow is not needed, and
`ai-edge-quantizer` stores the weights in fewer bits.
"""

from collections.abc import Callable
import contextlib
import importlib
import io
import os
import tempfile
from typing import Any, Literal

from etils import epy
import flatbuffers
import jax
import numpy as np

with epy.lazy_imports():  # An extra.
  from ai_edge_quantizer import algorithm_manager, qtyping, quantizer, recipe

Weights = Literal["float32", "float16", "int8"]

_IDENTIFIER = b"TFL3"
# What keeps the batch of its first input, whatever constants it has.
_OF_ANY_BATCH = (
  *("ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "POW", "RSQRT", "SQRT"),
  *("SQUARED_DIFFERENCE", "SQUARE", "NEG", "ABS", "RELU", "RELU6"),
  *("LOGISTIC", "EXP", "SUM", "MEAN", "REDUCE_MAX", "CAST", "CONCATENATION"),
  *("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "AVERAGE_POOL_2D"),
  *("MAX_POOL_2D", "PAD", "PADV2", "MIRROR_PAD", "TRANSPOSE", "SOFTMAX"),
  *("STRIDED_SLICE", "RESHAPE"),
)


def to_litert(
  function: Callable[[Any], Any], images: jax.ShapeDtypeStruct, weights: Weights
) -> bytes:
  """Returns a LiteRT model of a function of one batch of images.

  Args:
    function: jittable, from images to one array whose first axis is the batch.
    images: shape [1, ...] and dtype of the images.
    weights: type that the weights are stored in: float32; float16, which is
      computed in float32; or int8 by output channel, with activations that are
      rounded to int8 as they come.

  Returns:
    A model of one signature, "serving_default", from "images" to "logits". It
    says a batch of 1; an interpreter may resize it to any.

  Raises:
    ValueError: for a program in which the batch cannot be resized.
  """
  converter, ir, passmanager = _modules()
  # Else it logs a line on its own arithmetic, which converts nothing.
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
  traced = jax.jit(lambda images: (function(images),)).trace(images)
  # For CPU the program would have that platform's own forms of convolutions.
  lowered = traced.lower(lowering_platforms=("cuda",))
  context = ir.Context()
  converter.prepare_mlir_context(context)
  with context:
    module = ir.Module.parse(lowered.as_text())
    (main,) = (op for op in module.body.operations if op.name.value == "main")
    converter.set_signature(main, "serving_default", ["images"], ["logits"])
    converter.run_convert_to_tfl_passes(
      module, passmanager.PassManager(), converter.ConvertToTFLConfig()
    )
    data = converter.export_flatbuffer_to_bytes(module.operation)
  return _quantized(_of_any_batch(data), weights)


def _modules() -> tuple[Any, Any, Any]:
  """Returns modules whose contents exist at run time only."""
  names = ("converter_api_ext", "mlir.ir", "mlir.passmanager")
  converter, ir, passmanager = (
    importlib.import_module(f"litert_converter.{name}") for name in names
  )
  return converter, ir, passmanager


def _of_any_batch(data: bytes) -> bytes:
  """Returns a model in which no operator has the batch of 1 as a constant.

  A slice would take the first image of any batch, and its sum with the others
  be one of all images: wrong, without an error.

  Raises:
    ValueError: if there is an operator with a constant that cannot be mended.
  """
  schema: Any = importlib.import_module("litert_converter.schema_py_generated")
  model = schema.ModelT.InitFromPackedBuf(data)
  names = {v: k for k, v in vars(schema.BuiltinOperator).items()}
  for graph in model.subgraphs:
    for operator in graph.operators:
      code = model.operatorCodes[operator.opcodeIndex]
      name = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
      if name not in _OF_ANY_BATCH:
        raise ValueError(f"its operator {name} is of one batch size")
      if name == "STRIDED_SLICE":
        operator.builtinOptions.beginMask |= 1
        operator.builtinOptions.endMask |= 1
      elif name == "RESHAPE":
        tensor = graph.tensors[operator.inputs[1]]
        buffer = model.buffers[tensor.buffer]
        sizes = np.frombuffer(bytes(buffer.data), np.int32).copy()
        if sizes[0] not in (1, -1):  # Operators share constants.
          raise ValueError(f"its operator {name} is of one batch size")
        sizes[0] = -1  # All there are.
        buffer.data = np.frombuffer(sizes.tobytes(), np.uint8)
        if operator.builtinOptions is not None:
          operator.builtinOptions.newShape = sizes
  builder = flatbuffers.Builder(len(data))
  builder.Finish(model.Pack(builder), _IDENTIFIER)
  return bytes(builder.Output())


def _quantized(data: bytes, weights: Weights) -> bytes:
  """Returns a model whose weights are stored in a type."""
  if weights == "float32":
    return data
  with tempfile.NamedTemporaryFile(suffix=".tflite") as file:
    file.write(data)
    file.flush()
    work = quantizer.Quantizer(file.name)
    if weights == "int8":
      work.load_quantization_recipe(recipe.dynamic_wi8_afp32())
    else:
      work.update_quantization_recipe(
        regex=".*",
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        op_config=qtyping.OpQuantizationConfig(
          weight_tensor_config=qtyping.TensorQuantizationConfig(
            num_bits=16, dtype=qtyping.TensorDataType.FLOAT
          ),
          compute_precision=qtyping.ComputePrecision.FLOAT,
          explicit_dequantize=True,
        ),
        algorithm_key=algorithm_manager.AlgorithmName.FLOAT_CASTING,
      )
    with contextlib.redirect_stdout(io.StringIO()):  # It says sizes and times.
      result = work.quantize()
    assert result.quantized_model is not None
    return bytes(result.quantized_model)

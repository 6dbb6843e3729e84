#!/usr/bin/env bash
# litert-converter writes the batch into a strided slice: an interpreter whose
# input is resized then takes the first image for all of them, without an error.
#
# Versions: litert-converter 0.5.0, ai-edge-litert 2.3.0, jax 0.10.2; Python
# 3.11, Linux.
# Expected: after resize_tensor_input to three images, a model of
#   f(x) = x[:, ::2, ::2] + mean(x)
# gives f of each image, or allocate_tensors refuses the size.
# Seen: the slice ends at image 1 whatever the batch, and the sum repeats it:
#   image 0: largest difference 0.0
#   image 1: largest difference 3.0 (it has the pixels of image 0)
#   image 2: largest difference 6.0 (it has the pixels of image 0)
# Exits with 1 when that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  litert-converter==0.5.0 ai-edge-litert==2.3.0 jax==0.10.2 jaxlib==0.10.2
"$folder/venv/bin/python" - 2>/dev/null <<'EOF'
from ai_edge_litert.interpreter import Interpreter
import jax
import jax.numpy as jnp
from litert_converter import converter_api_ext as converter
from litert_converter.mlir import ir, passmanager
import numpy as np


def f(x):
  return x[:, ::2, ::2] + jnp.mean(x, (1, 2, 3), keepdims=True)


one = jax.ShapeDtypeStruct((1, 4, 4, 1), jnp.float32)
program = jax.jit(lambda x: (f(x),)).lower(one).as_text()
context = ir.Context()
converter.prepare_mlir_context(context)
with context:
  module = ir.Module.parse(program)
  (main,) = module.body.operations
  converter.set_signature(main, "main", ["x"], ["y"])
  converter.run_convert_to_tfl_passes(
    module, passmanager.PassManager(), converter.ConvertToTFLConfig()
  )
  model = converter.export_flatbuffer_to_bytes(module.operation)

images = np.full((3, 4, 4, 1), 1, np.float32) * np.array([0, 3, 6]).reshape(
  3, 1, 1, 1
).astype(np.float32)
runtime = Interpreter(model_content=model)
runtime.resize_tensor_input(0, images.shape)
runtime.allocate_tensors()
runtime.set_tensor(runtime.get_input_details()[0]["index"], images)
runtime.invoke()
found = runtime.get_tensor(runtime.get_output_details()[0]["index"])
differences = [float(abs(a - b).max()) for a, b in zip(found, f(images))]
for n, (difference, image) in enumerate(zip(differences, found)):
  of_first = np.allclose(image, images[0, ::2, ::2] + images[n].mean())
  note = " (it has the pixels of image 0)" if n and of_first else ""
  print(f"image {n}: largest difference {difference}{note}")
raise SystemExit(differences != [0.0, 3.0, 6.0])
EOF

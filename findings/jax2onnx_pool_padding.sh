#!/usr/bin/env bash
# jax2onnx drops explicit padding of Flax's pools, without an error.
#
# Versions: jax2onnx 0.17.1 (also 0.13.0), jax 0.10.2, flax 0.12.7, onnx 1.23.2,
# onnxruntime 1.32.0; Python 3.11, Linux.
# Expected: an ONNX model of nn.max_pool or nn.avg_pool with
# padding=((1, 1), (1, 1)) gives what Flax gives, or is refused.
# Seen: it is written with auto_pad=VALID, passes onnx.checker with full_check,
# and gives [2, 4, 4, 3] where Flax gives [2, 5, 5, 3]:
#   max_pool: flax (2, 5, 5, 3), onnx (2, 4, 4, 3)
#   avg_pool: flax (2, 5, 5, 3), onnx (2, 4, 4, 3)
# Exits with 1 when that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  jax2onnx==0.17.1 jax==0.10.2 jaxlib==0.10.2 flax==0.12.7 onnx==1.23.2 \
  onnxruntime==1.32.0
"$folder/venv/bin/python" - 2>/dev/null <<'EOF'
from flax import linen as nn
import jax
import jax2onnx
import numpy as np
import onnx
import onnxruntime

x = np.random.default_rng(0).normal(size=(2, 9, 9, 3)).astype(np.float32)
dropped = []
for name in ("max_pool", "avg_pool"):

  def pool(x, name=name):
    # Looked up when it is called, as jax2onnx puts its own in its place.
    return getattr(nn, name)(
      x, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1))
    )

  expected = pool(x).shape
  model = jax2onnx.to_onnx(pool, inputs=[jax.ShapeDtypeStruct(x.shape, x.dtype)])
  onnx.checker.check_model(model, full_check=True)
  session = onnxruntime.InferenceSession(model.SerializeToString())
  (found,) = session.run(None, {session.get_inputs()[0].name: x})
  print(f"{name}: flax {expected}, onnx {found.shape}")
  dropped.append((expected, found.shape) == ((2, 5, 5, 3), (2, 4, 4, 3)))
raise SystemExit(not all(dropped))
EOF

"""What the verbs say of wrong inputs; `inspect` has a table of its own."""

import pytest
from safetensors.numpy import load_file, save_file

from tests.recipes import ROOT

DIGITS = (
  f"--model cifar_resnet20 --config {ROOT}/configs/digits.py "
  "--config.data.data_dir={data_dir} "
  "--config.model.stage_features=(16,32,64)"
)
CASES = {
  "frob": "argument VERB: invalid choice: 'frob'",
  "predict --workdir {workdir} x.png --frob": (
    "--frob is not a flag of predict: see python -m flax_resnet predict --help"
  ),
  "train --config digits --config.num_steps 60": (
    "--config.num_steps has no value: write --config.num_steps=60"
  ),
  "train --config digits digits": "digits is not a flag of train",
  "train --config digits --workdir=": "--workdir: it is empty: give a path of",
  "train --config digits --config.init_from=cifar_resnet20.cifar10": (
    "has the weights of cifar_resnet20, and not of cifar_resnet8: the model "
    "has to be cifar_resnet20"
  ),
  "predict {weights} --cam= --workdir {workdir}": "--cam: it is empty",
  "predict --workdir {workdir} x.png --config.seed=1": (
    "--config.seed=1 is not a flag of predict"
  ),
  "check": "give either a folder or --config",
  "check {tmp} --config x.py": "give either a folder or --config",
  "check {tmp} --config.data.root=x": "--config.data.root=x needs --config",
  "check {tmp}/none": "check: root is {tmp}/none, where there is no folder",
  "check {tmp}": "holds 0 folders of a class (none): there must be 2 at least",
  "check --config {root}/configs/folder.py --config.data.root={tmp}": (
    "config.data: {tmp} holds 0 folders of a class (none)"
  ),
  "convert {tmp}/no.pth {out} --model resnet18": "there is no weight file",
  "convert {weights} {out} --model resnet19": "unknown model 'resnet19'",
  "convert {weights} {weights} --model cifar_resnet20": "is there already",
  "convert {weights} {tmp}/a/b.pth --model x": "is not a folder",
  "convert {weights} {out} --model cifar_resnet32": "missing: layer1.3.bn1",
  "convert {weights} {out} --model x --names keras": "--names is 'keras'",
  "convert {weights} {tmp}/net.onnx --model x": (
    "net.onnx: convert writes safetensors, PyTorch's files, or the folder of a "
    "Flax checkpoint, and no .onnx: end OUT in .safetensors or .pth or"
  ),
  "convert {weights} {tmp}/net.H5 --model x": "and no .h5:",
  "convert {weights} {out}": "does not say of which network: give --model NAME",
  "evaluate": "give either --workdir or --weights",
  "evaluate --weights {weights}": "--weights needs --config for the data",
  "evaluate --workdir {workdir} --image-size 0": "--image-size is 0: use 1",
  "evaluate --workdir {workdir} --image-size 8,0": "--image-size is 0: use 1",
  "evaluate --workdir {workdir} --image-size 3,8,9": (
    "--image-size is '3,8,9': give a number, or height and width, 96,128"
  ),
  "evaluate --workdir {workdir} --image-size 8x9": (
    "--image-size is '8x9': give a number, or height and width, 96,128"
  ),
  "evaluate --workdir {workdir} --top 0": "--top is 0: use 1 or more",
  "evaluate --workdir {workdir} --crop-fraction 2": (
    "--crop-fraction is 2.0: use 0.001 to 1"
  ),
  "evaluate --workdir {workdir} {tmp}": "is not a workdir: it has no config",
  "evaluate --workdir {tmp} --weights {weights}": "give either --workdir or",
  "predict {weights} --weights {weights} --cam {tmp}": "is there already",
  "evaluate --workdir {tmp}": "is not a workdir: it has no config.json",
  "evaluate --workdir {tmp} --config x.py": "--config is that of --weights",
  "evaluate --workdir {workdir} --config.seeed=1": "config.seeed is unknown",
  "evaluate --weights {weights} " + DIGITS: (
    "the images have 1 channels and the weights want 3"
  ),
  "evaluate --weights {seven} " + DIGITS: (
    "the weights have 7 classes and the data set 10"
  ),
  "evaluate --weights {weights} --config {root}/configs/digits.py": (
    "does not say of which network: give --model NAME"
  ),
  "evaluate --weights resnet50.a1_in1 --config {root}/configs/digits.py": (
    "unknown tag 'resnet50.a1_in1': did you mean 'resnet50.a1_in1k'?"
  ),
  "predict {weights} --weights resnet5": "did you mean 'resnet50'?",
  "predict {weights} --weights nothing": (
    "no model 'nothing': python -m flax_resnet models has the names"
  ),
  "convert resnet50.a9_in1k {out}": "unknown tag 'resnet50.a9_in1k': did you",
  "convert {weights} {out} --hub --model cifar_resnet20": (
    "out.safetensors: convert --hub writes a folder, and no .safetensors: leave"
  ),
  "convert {weights} {tmp}/OUT --hub --names cifar": "leave --names out",
  "models zebra*": "no network has a name like 'zebra*': see",
  "models --pretrained cifar_wrn*": "no published weights have a name like",
  "export {tmp}/out --workdir {workdir} --weights {weights}": "give either",
  "export {workdir} --workdir {workdir}": "is there already",
  # Before the workdir is looked at.
  "export {tmp}/net.tflite --workdir {tmp} --nchw": "takes [b, h, w, c]: leave",
  "export {tmp}/net.onnx --workdir {tmp} --precision int8": (
    "--precision int8 is that of a .tflite OUT"
  ),
  "export {tmp}/net.pb --workdir {tmp}": (
    "net.pb: export writes ONNX, LiteRT or StableHLO, and no .pb: end OUT in "
    ".onnx or .tflite or .stablehlo"
  ),
  "export {tmp}/net.PT --workdir {tmp}": "and no .pt:",
  "export {out} --workdir {tmp}": "and no .safetensors:",
  "predict {weights} --weights {weights} --top 0": "--top is 0: use 1 or more",
  "predict {weights} --weights {weights}": "give --model NAME",
  "predict {weights} --weights {weights} --checkpoint best": (
    "--checkpoint is one of a run: give its --workdir"
  ),
  "evaluate --workdir {workdir} --checkpoint 9": "no checkpoint '9' in",
}


@pytest.mark.parametrize("arguments", CASES)
def test_wrong_inputs(call, workdir, weights, data_dir, tmp_path, arguments):
  paths = {
    "data_dir": data_dir,
    "root": ROOT,
    "out": tmp_path / "out.safetensors",
    "seven": tmp_path / "seven.safetensors",
    "tmp": tmp_path,
    "weights": weights,
    "workdir": workdir,
  }
  if "{seven}" in arguments:
    tensors = load_file(weights)
    head = ("linear.weight", "linear.bias")
    save_file(tensors | {k: tensors[k][:7] for k in head}, paths["seven"])
  code, out, err = call(*arguments.format(**paths).split())
  assert (code, out, err.count("\n")) == (2, "", 1), err
  assert CASES[arguments].replace("{tmp}", str(tmp_path)) in err
  assert not paths["out"].exists()

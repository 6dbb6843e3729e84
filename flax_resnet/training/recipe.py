"""The keys of a config, all but those within its sections."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Annotated, Any

from flax_resnet import bucket
from flax_resnet.schema import Count, Positive, Range, Rate
from flax_resnet.training.freezing import Freezing

MAX_STEPS = 2**31 - 1  # They are counted in int32.
Seed = Annotated[int, Range(minimum=0, maximum=2**32 - 1)]
Section = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """The keys of a config; each section holds keyword arguments of functions.

  Attributes:
    seed: seed of parameters, order and augmentation, 0 to 2^32 - 1.
    batch_size: number of examples of a step, on all devices together.
    eval_batch_size: number of examples that are evaluated at a time.
    num_epochs: length of the run in epochs, or None.
    num_steps: length of the run in steps, or None; one of the two is given.
    log_every: number of steps between two logged rows.
    eval_every: number of steps between two evaluations.
    checkpoint_every: number of steps between two checkpoints.
    keep_checkpoints: number of the latest checkpoints to keep, besides the
      best; default 2.
    accumulate: number of parts in which the gradient of a step is computed, one
      after the other, for a batch that does not fit into memory: it is that of
      the whole batch. BatchNorm needs `model.norm_group_size` then. Default 1.
    steps_per_call: number of steps that one call of the compiled program does.
      With more than 1, all training images are kept on every device and must
      fit there; it pays where a step is short. Default 1.
    init_from: weights to start from, as `weights.load_pretrained` takes them;
      None to draw them.
    ema_decay: share of the old that the moving average of parameters and
      running statistics keeps, in [0, 1); evaluation takes the average. 0 for
      none.
    ema_every: number of steps between two updates of this average; default 1.
    ema_warmup: whether the average keeps less of itself at first, as timm's
      `ModelEmaV3` with `use_warmup`; default False.
    patience: number of evaluations in turn without a better result after which
      the run ends; None (default) for a run of its whole length.
    skip_nonfinite: number of steps of the run that may be skipped as their loss
      or gradient is not finite; one more ends it. Default 0.
    freeze_trunk: whether the head alone is trained, on a trunk that works as in
      evaluation: running statistics, no dropout, no stochastic depth.
    freeze_stages: number of the first stages that are not trained, with the
      stem before them, as mmpretrain's `frozen_stages` counts: 0 for the stem
      alone; torchvision's `trainable_layers` is 4 minus it. They work as in
      evaluation. None (default) for nothing.
    freeze_until: epoch at which what is frozen is trained too, above 0; None
      (default) for never.
    freeze_batch_stats: whether what is frozen works as in evaluation; if not,
      it works as in training, and its running statistics move. Default True.
    profile: two numbers of steps, from the first of which to the second a trace
      is recorded, for TensorBoard's profiler and Perfetto; default () for none.
    model: keywords of `models.create_model`.
    data: keywords of the functions that `data.load` calls.
    augment: keywords of `augment.make_augment`.
    loss: keywords of `losses.make_loss`.
    optim: keywords of `schedules.make_schedule` and of
      `optimizers.make_optimizer`.

  Raises:
    ValueError: for keys that do not go together.
  """

  seed: Seed = 0
  batch_size: Count
  eval_batch_size: Count
  num_epochs: int | None = None
  num_steps: int | None = None
  log_every: Count
  eval_every: Count
  checkpoint_every: Count
  keep_checkpoints: Count = 2
  accumulate: Count = 1
  steps_per_call: Count = 1
  init_from: Annotated[str, bucket.LOCATION] | None = None
  ema_decay: Rate = 0.0
  ema_every: Count = 1
  ema_warmup: bool = False
  patience: Count | None = None
  skip_nonfinite: Annotated[int, Range(minimum=0)] = 0
  freeze_trunk: bool = False
  freeze_stages: Annotated[int, Range(minimum=0)] | None = None
  freeze_until: Positive | None = None
  freeze_batch_stats: bool = True
  profile: Sequence[Annotated[int, Range(minimum=0)]] = ()
  model: Section
  data: Section
  augment: Section
  loss: Section = dataclasses.field(default_factory=dict)
  optim: Section

  def __post_init__(self):
    if (self.num_epochs is None) == (self.num_steps is None):
      raise ValueError(
        f"num_epochs is {self.num_epochs} and num_steps {self.num_steps}: give "
        "one of them, and None for the other"
      )
    if self.freeze_trunk and self.freeze_stages is not None:
      raise ValueError(
        f"freeze_trunk is True, which freezes all stages, and freeze_stages "
        f"{self.freeze_stages}: use one of them"
      )
    steps = list(self.profile)
    if len(steps) not in (0, 2) or steps != sorted(set(steps)):
      raise ValueError(
        f"profile is {self.profile}: give two numbers of steps, from and to, "
        "such as (100, 110)"
      )
    if self.ema_warmup and not self.ema_decay:
      raise ValueError(
        "ema_warmup is True and ema_decay 0.0, with which there is no average: "
        "use False, or an ema_decay such as 0.999"
      )
    freezes = self.freeze_trunk or self.freeze_stages is not None
    if freezes and self.init_from is None:
      key, part = (
        ("freeze_trunk is True", "the trunk")
        if self.freeze_trunk
        else (f"freeze_stages is {self.freeze_stages}", "a part of the network")
      )
      raise ValueError(
        f"{key} and init_from None, so that {part} would stay as it was drawn: "
        "give init_from, the weights to start from"
      )
    if not freezes and self.freeze_until is not None:
      raise ValueError(
        f"freeze_until is {self.freeze_until} and nothing is frozen: use None, "
        "or set freeze_trunk or freeze_stages"
      )
    if not freezes and not self.freeze_batch_stats:
      raise ValueError(
        "freeze_batch_stats is False and nothing is frozen: use True, or set "
        "freeze_trunk or freeze_stages"
      )

  def freezing(self, num_examples: int) -> Freezing:
    """Returns what is not trained, of a run on so many examples."""
    until = self.freeze_until
    return Freezing(
      trunk=self.freeze_trunk,
      stages=self.freeze_stages,
      batch_stats=self.freeze_batch_stats,
      until=None
      if until is None
      else round(until * num_examples / self.batch_size),
    )

  def total_steps(self, num_examples: int) -> int:
    """Returns the length of the run in steps."""
    steps = self.num_steps
    if self.num_epochs is not None:
      steps = round(self.num_epochs * num_examples / self.batch_size)
    if steps is None or not 1 <= steps <= MAX_STEPS:
      raise ValueError(
        f"the run has {steps} steps: use at least 1, up to {MAX_STEPS}"
      )
    return steps

"""A small ResNet-20 on digits."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      seed=0,
      batch_size=128,
      eval_batch_size=128,
      num_epochs=None,
      num_steps=330,
      log_every=30,
      eval_every=110,
      checkpoint_every=110,
      keep_checkpoints=2,
      model=dict(
        name="cifar_resnet20",
        num_classes=10,
        norm_group_size=None,
        dtype="float32",
      ),
      data=dict(
        name="digits",
        data_dir=None,
        train_split="train",
        eval_split="test",
        image_size=16,
        random_resized_crop=False,
        center_crop_fraction=1.0,
        in_memory=True,
        num_threads=2,
      ),
      augment=dict(
        mean=(0.3,),
        std=(0.35,),
        flip=False,
        crop_padding=0,
        rotation=12.0,
        translation=0.08,
        scaling=0.15,
        shear=0.1,
      ),
      loss=dict(label_smoothing=0.1),
      optim=dict(
        learning_rate=0.2,
        schedule="cosine",
        warmup=0.1,
        boundaries=(),
        decay_rate=0.1,
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-4,
      ),
    )
  )

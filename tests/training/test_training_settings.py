import pytest

from patchcert.errors import TrainingError
from patchcert.training.config import TrainingConfig

MARGIN = {"objective": "certified_margin", "margin_patch": "5x5", "views_per_image": 0}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"views_per_image": -1}, "views_per_image must be positive, or 0 for all views; not -1"),
        ({"checkpoint_every": -3}, "checkpoint_every must be at least 1, not -3"),
        ({"learning_rate": 0.0}, r"learning_rate must be > 0, not 0\.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be > 0, not nan"),
        ({"learning_rate": float("inf")}, "learning_rate must be > 0, not inf"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), not 1\.0"),
        ({"momentum": -0.1}, r"not -0\.1"),
        ({"weight_decay": -1e-4}, r"weight_decay must be >= 0, not -0\.0001"),
        ({"memory_gib": -1.0}, r"memory_gib must be >= 0, not -1\.0"),
        ({"seed": -1}, "seed must be >= 0, not -1"),
        ({"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\), not 1\.0"),
        ({"warmup_fraction": 0.0}, r"warmup_fraction must lie in \(0, 1\), not 0\.0"),
        ({"milestones": (0.5, 1.0)}, r"milestones are shares of the run in \(0, 1\), not \(0\.5, 1\.0\)"),
        ({"shift_pixels": -1}, "shift_pixels must be >= 0, not -1"),
        ({"augmentation": "shift", "shift_pixels": 0}, "'shift' by 0 pixels has no effect"),
        ({"optimizer": "adam"}, "optimizer is one of sgd, adamw, muon, not 'adam'"),
        ({"schedule": "linear"}, "schedule is one of one_cycle, cosine, steps, constant, not 'linear'"),
        ({"augmentation": "trivial_augment", "augmentation_share": 0}, "augmentation_share must lie in"),
        ({"augmentation_share": 0.5}, "augmentation_share 0.5 has no effect on 'none'"),
        ({"augmentation": "flip"}, "augmentation is one of none, shift, shift_flip, trivial_augment, not 'flip'"),
        ({"view_sampling": "all"}, "view_sampling is one of image, batch, spread, not 'all'"),
        ({"precision": "float16"}, "precision is one of float32, bfloat16, not 'float16'"),
        ({"views_per_image": 0, "view_sampling": "batch"}, "'batch' has no effect when views_per_image is 0"),
        ({"objective": "margin"}, "objective is one of cross_entropy, certified_margin, not 'margin'"),
        ({"margin_patch": "5x5"}, "margin_patch '5x5' has no effect on cross_entropy"),
        ({"margin_weight": 0.2}, r"margin_weight 0\.2 has no effect on cross_entropy"),
        ({"views_per_image": 0, "view_sampling": "spread"}, "'spread' has no effect when views_per_image is 0"),
        ({"objective": "certified_margin", "margin_patch": "5x5"}, "or a spread of them, not 1 drawn by image"),
        ({**MARGIN, "views_per_image": 4, "view_sampling": "batch"}, "or a spread of them, not 4 drawn by batch"),
        ({"objective": "certified_margin", "views_per_image": 0}, "needs the patch to train against"),
        ({**MARGIN, "margin_weight": 0.0}, r"margin_weight must lie in \(0, 1\], not 0\.0"),
        ({**MARGIN, "margin_weight": 1.1}, r"not 1\.1"),
        ({"split": "test"}, "split is one of train, trainval, not 'test'"),
    ],
)
def test_settings_without_sense_are_refused(settings, words):
    with pytest.raises(TrainingError, match=f"training: .*{words}"):
        TrainingConfig(**settings)


def test_flips_without_shifts_make_sense():
    TrainingConfig(augmentation="shift_flip", shift_pixels=0)

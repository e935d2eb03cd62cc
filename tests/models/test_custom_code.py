import importlib
import sys

import pytest

from patchcert.data.storage import Folder
from patchcert.errors import CheckpointError, ModelError
from patchcert.geometry import BandViews
from patchcert.models.checkpoint import initial_classifier, load_checkpoint, save_checkpoint
from patchcert.models.config import ClassifierConfig
from patchcert.models.custom_code import custom_code_digest

SOURCE = """
from torch import nn

def make(num_input_channels, view_size, num_classes):
    height, width = view_size
    return nn.Sequential(nn.Flatten(), nn.Linear(num_input_channels * height * width, num_classes), nn.{0}())
"""
VIEWS = BandViews(image_size=(6, 5), width=2)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes the user's module anew."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(last_layer):
        (tmp_path / "my_network.py").write_text(SOURCE.format(last_layer))
        sys.modules.pop("my_network", None)
        importlib.invalidate_caches()

    yield write
    sys.modules.pop("my_network", None)


def test_model_whose_code_changed_since_it_was_trained_is_refused(module, tmp_path):
    module("Identity")
    config = ClassifierConfig(network="my_network:make")
    folder = Folder(str(tmp_path / "model"))
    digest = save_checkpoint(initial_classifier(config, VIEWS, 1, 3, 0), folder, {})
    assert load_checkpoint(folder, classifier=config).num_classes == 3
    module("ReLU")
    with pytest.raises(CheckpointError, match=r"other code of 'my_network:make': sha256 \w{12} then, \w{12} now"):
        load_checkpoint(folder, classifier=config)
    assert save_checkpoint(initial_classifier(config, VIEWS, 1, 3, 0), folder, {}) != digest


def test_own_networks_have_no_code_digest_and_missing_modules_are_named():
    assert custom_code_digest("resnet9") is None and custom_code_digest("torchvision:resnet50") is None
    with pytest.raises(ModelError, match="'nowhere_to_be_found:make' cannot be found"):
        custom_code_digest("nowhere_to_be_found:make")


def test_more_classes_than_a_vote_table_can_hold_are_refused():
    with pytest.raises(ModelError, match="65537 classes are asked for; vote tables hold at most 65536"):
        initial_classifier(ClassifierConfig(network="drs-mnist-cnn"), VIEWS, 1, 65537, 0)

import hashlib
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


class TestDigest:
    """The digest follows every file of the user that an import would read, and no other."""

    @pytest.fixture
    def project(self, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(str(tmp_path))

        def write(**files):
            for name, text in files.items():
                # "pack__init__" is pack/__init__.py, "pack__net" is pack/net.py.
                parts = name.removesuffix("__init__").split("__")
                path = tmp_path.joinpath(*parts, *(["__init__"] if name.endswith("__init__") else []))
                path = path.with_suffix(".py")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            importlib.invalidate_caches()

        return write

    def changes(self, project, network, **edit):
        before = custom_code_digest(network)
        project(**edit)
        return custom_code_digest(network) != before

    def test_one_file_alone_has_the_digest_of_its_bytes(self, project, tmp_path):
        project(alone_network="import json\nfrom torch import nn\n")
        expected = hashlib.sha256((tmp_path / "alone_network.py").read_bytes()).hexdigest()
        assert custom_code_digest("alone_network:make") == expected

    @pytest.mark.parametrize(
        "imported",
        [
            "import own_part",
            "from own_part import SIZE",
            "from own_part import *",
            "def make():\n    from own_part import SIZE",
            "import importlib\nimportlib.import_module('own_part')",
        ],
    )
    def test_imports_anywhere_count(self, project, imported):
        project(own_network=imported, own_part="SIZE = 1", own_other="SIZE = 1")
        assert self.changes(project, "own_network:make", own_part="SIZE = 2")
        assert not self.changes(project, "own_network:make", own_other="SIZE = 2")

    def test_imports_of_imports_count(self, project):
        project(own_network="import own_a", own_a="import own_b", own_b="import own_c, own_a", own_c="SIZE = 1")
        assert self.changes(project, "own_network:make", own_c="SIZE = 2")

    def test_packages_count_with_relative_imports_and_what_runs_on_the_way(self, project):
        project(own_pack__init__="", own_pack__nets__init__="", own_pack__parts__init__="", own_pack__tools="C = 1")
        project(own_pack__nets__net="from ..parts import blocks\nfrom . import sizes")
        project(own_pack__parts__blocks="A = 1", own_pack__nets__sizes="B = 1")
        network = "own_pack.nets.net:make"
        assert self.changes(project, network, own_pack__parts__blocks="A = 2")
        assert self.changes(project, network, own_pack__nets__sizes="B = 2")
        assert self.changes(project, network, own_pack__init__="import own_pack.tools")
        assert self.changes(project, network, own_pack__tools="C = 2")
        assert "own_pack" not in sys.modules, "nothing is executed"

    def test_folders_without_init_are_packages(self, project):
        project(own_space__inner__net="from own_space.inner import part", own_space__inner__part="A = 1")
        assert self.changes(project, "own_space.inner.net:make", own_space__inner__part="A = 2")

    def test_damaged_files_are_read_as_bytes(self, project):
        project(own_network="import own_part", own_part="def (")
        assert self.changes(project, "own_network:make", own_part="def ((")

    def test_modules_that_are_not_there_are_left_to_the_import(self, project):
        project(own_network="try:\n    import not_installed_anywhere\nexcept ImportError:\n    pass\nimport torch")
        assert len(custom_code_digest("own_network:make")) == 64

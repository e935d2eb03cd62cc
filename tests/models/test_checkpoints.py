import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from patchcert.data.sealed import sealed_bytes
from patchcert.data.storage import Folder
from patchcert.errors import CheckpointError
from patchcert.geometry import BandViews, BlockViews, CropViews
from patchcert.models.checkpoint import initial_classifier, load_checkpoint, read_checkpoint_config, save_checkpoint
from patchcert.models.config import ClassifierConfig
from patchcert.models.custom_code import custom_code_digest
from patchcert.views.encoding import EncodingConfig

VIEWS = BandViews(image_size=(9, 12), width=4)
CONFIG = ClassifierConfig(network="drs-mnist-cnn", width=0.05)
CROPS = CropViews(image_size=(9, 12), crop_size=8)
CROP_CONFIG = ClassifierConfig(
    network="resnet9", width=0.05, encoding=EncodingConfig(removed="cut", mean=(0.5,), std=(0.2,), positional_bound=0.1)
)


def small_classifier(config=CONFIG, views=VIEWS, num_classes=5, seed=0):
    return initial_classifier(config, views, 1, num_classes, seed=seed)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "checkpoint")


@pytest.fixture
def saved(folder):
    """A small checkpoint."""
    save_checkpoint(small_classifier(), folder, {})
    return folder


def path_of(folder, name):
    return Path(folder.path(name))


def weights_of(folder):
    """Name of the file that holds the weights."""
    return read_checkpoint_config(folder)["weights"]


def unsealed(folder):
    """The record of a checkpoint without its own digest, as earlier versions wrote it."""
    config = json.loads(folder.read("config.json"))
    del config["sha256"]
    return config


def forge(folder, *, weights=None, **changes):
    """What somebody writes who knows the format: a checkpoint with a matching digest."""
    config = unsealed(folder) | changes
    weights = folder.read(config["weights"]) if weights is None else weights
    computes = {key: value for key, value in config.items() if key not in ("digest", "provenance", "weights")}
    canonical = json.dumps(computes, sort_keys=True, separators=(",", ":")).encode()
    config["digest"] = hashlib.sha256(canonical + b"\0" + weights).hexdigest()
    folder.write(config["weights"], weights)
    folder.write("config.json", sealed_bytes(config))


def test_a_trained_model_survives_the_round_trip(crop_digits, folder, prepared_digits):
    model = crop_digits.classifier

    digest = save_checkpoint(model, folder, {"recipe": "test"})
    loaded = load_checkpoint(folder, classifier=model.config, views=model.views, num_classes=10)

    assert read_checkpoint_config(folder)["digest"] == digest
    assert not loaded.training
    assert (loaded.config, loaded.views, loaded.num_classes) == (model.config, model.views, 10)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    images = torch.from_numpy(prepared_digits["test"].read(0, 8).images_NHWC.transpose(0, 3, 1, 2).copy())
    views_1V = torch.arange(model.views.num_views)[None]
    with torch.no_grad():
        assert torch.equal(loaded(images, views_1V), model(images, views_1V))


def test_a_checkpoint_says_what_it_is(saved):
    loaded = load_checkpoint(saved)
    assert (loaded.config, loaded.views, loaded.image_channels, loaded.num_classes) == (CONFIG, VIEWS, 1, 5)


def test_the_files_are_safetensors_and_json(saved):
    assert list(saved.files()) == ["config.json", weights_of(saved)]
    weights = safetensors.torch.load(saved.read(weights_of(saved)))
    assert weights.keys() == small_classifier().state_dict().keys()
    json.loads(saved.read("config.json"))


class TestDigest:
    def digest(self, folder, classifier, provenance=None):
        return save_checkpoint(classifier, folder, provenance or {})

    def test_is_the_same_in_every_process(self, folder, tmp_path):
        program = """
import sys
from patchcert.data.storage import Folder
from patchcert.geometry import BandViews
from patchcert.models.checkpoint import initial_classifier, save_checkpoint
from patchcert.models.config import ClassifierConfig
classifier = initial_classifier(
    ClassifierConfig(network="drs-mnist-cnn", width=0.05), BandViews(image_size=(9, 12), width=4), 1, 5, seed=0
)
print(save_checkpoint(classifier, Folder(sys.argv[1]), {"time": "another"}))
"""
        environment = os.environ | {"PYTHONHASHSEED": "7"}
        there = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "there")],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert there.stdout.strip() == self.digest(folder, small_classifier(), {"time": "one"})
        assert (tmp_path / "there" / weights_of(folder)).read_bytes() == folder.read(weights_of(folder))

    def test_changes_with_one_weight(self, folder):
        classifier = small_classifier()
        before = self.digest(folder, classifier)
        with torch.no_grad():
            weight = classifier.network[0].weight
            weight[0, 0, 0, 0] = torch.nextafter(weight[0, 0, 0, 0], torch.tensor(9.0))
        assert self.digest(folder, classifier) != before

    def test_changes_with_all_that_changes_the_scores(self, folder):
        normalised = ClassifierConfig(
            network="drs-mnist-cnn", width=0.05, encoding=EncodingConfig(mean=(0.1,), std=(0.3,))
        )
        same_weights = small_classifier().state_dict()
        digests = {self.digest(folder, small_classifier())}
        for config, views in (
            (normalised, VIEWS),
            (CONFIG, BandViews(image_size=(9, 12), width=5)),
            (CONFIG, BandViews(image_size=(9, 12), width=4, stride=2)),
            (CONFIG, BandViews(image_size=(9, 12), width=4, axis="row")),
            (CONFIG, BlockViews(image_size=(9, 12), block_size=4)),
        ):
            classifier = small_classifier(config, views)
            classifier.load_state_dict(same_weights)
            digests.add(self.digest(folder, classifier))
        assert len(digests) == 6

    def test_does_not_change_with_the_provenance(self, folder):
        assert self.digest(folder, small_classifier(), {"a": 1}) == self.digest(folder, small_classifier(), {"b": 2})


def test_saving_again_replaces(saved):
    save_checkpoint(small_classifier(CROP_CONFIG, CROPS, num_classes=3), saved, {})
    assert load_checkpoint(saved).views == CROPS
    assert list(saved.files()) == ["config.json", weights_of(saved)], "the old weights are still there"


def test_a_checkpoint_that_does_not_name_its_weights_is_read(saved):
    """As every version wrote them that had one name for all weights."""
    config = unsealed(saved)
    saved.write("weights.safetensors", saved.read(config["weights"]))
    saved.remove(config.pop("weights"))
    saved.write("config.json", json.dumps(config).encode())
    assert load_checkpoint(saved, classifier=CONFIG, views=VIEWS, num_classes=5).config == CONFIG
    save_checkpoint(small_classifier(seed=1), saved, {})
    assert list(saved.files()) == ["config.json", weights_of(saved)]


def test_a_save_that_ends_in_between_leaves_the_old_checkpoint(saved, tmp_path):
    """The file that may not grow further is the weights, or config.json when the provenance is the larger one."""
    old = load_checkpoint(saved)
    cases = [(file, ends) for file in ("weights", "config") for ends in ("error", "killed")]
    for file, ends in cases:
        shutil.copytree(saved.path(), tmp_path / f"{file} {ends}")
    program = """
import os, resource, signal, sys
from patchcert.data.storage import Folder
from patchcert.errors import ResourceError
from patchcert.geometry import BandViews
from patchcert.models.checkpoint import initial_classifier, save_checkpoint
from patchcert.models.config import ClassifierConfig
classifier = initial_classifier(
    ClassifierConfig(network="drs-mnist-cnn", width=0.05), BandViews(image_size=(9, 12), width=4), 1, 5, seed=1
)
for path in sys.argv[1:]:
    if (process := os.fork()) == 0:
        if path.endswith("killed"):
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        limit = 5_000 if "weights" in path else 500_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            save_checkpoint(classifier, Folder(path), {"notes": "x" * 1_000_000})
        except ResourceError as error:
            os._exit(3 if str(error).startswith("cannot write " + path) else 4)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
"""
    folders = [Folder(tmp_path / f"{file} {ends}") for file, ends in cases]
    ended = subprocess.run(
        [sys.executable, "-c", program, *map(str, folders)], capture_output=True, text=True, check=True
    )

    assert [int(line) for line in ended.stdout.split()] == [3, -signal.SIGXFSZ] * 2
    for folder, (file, _) in zip(folders, cases, strict=True):
        loaded = load_checkpoint(folder, classifier=CONFIG, views=VIEWS, num_classes=5)
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in old.state_dict().items())
        assert len(folder.files()) == (2 if file == "weights" else 3)
        save_checkpoint(small_classifier(seed=1), folder, {})
        assert sorted(os.listdir(folder.path())) == ["config.json", weights_of(folder)]


def test_tied_weights_are_saved(folder, tmp_path, monkeypatch):
    (tmp_path / "tied_networks.py").write_text(
        "from torch import nn\n"
        "def tied(num_input_channels, view_size, num_classes):\n"
        "    first, last = nn.LazyLinear(num_classes), nn.Linear(num_classes, num_classes)\n"
        "    return nn.Sequential(nn.Flatten(), first, last, last)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = ClassifierConfig(network="tied_networks:tied")
    classifier = small_classifier(config)
    save_checkpoint(classifier, folder, {})
    loaded = load_checkpoint(folder, classifier=config)
    assert loaded.network[2] is loaded.network[3]
    assert torch.equal(loaded.network[3].weight, classifier.network[3].weight)


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        (
            {"views": BandViews(image_size=(9, 12), width=5)},
            "trained on column bands of width 4, .* but column bands of width 5, .* are asked for.\n  Train",
        ),
        ({"views": BlockViews(image_size=(9, 12), block_size=4)}, "but blocks of 4x4, 108 views of 9x12 are asked for"),
        ({"num_classes": 10}, "tells 5 classes apart, the dataset has 10"),
        ({"classifier": CROP_CONFIG}, "holds another model: network 'drs-mnist-cnn', asked 'resnet9'"),
        (
            {"classifier": ClassifierConfig(network="drs-mnist-cnn", width=0.1)},
            "another model: width 0.05, asked 0.1.\n",
        ),
        (
            {
                "classifier": ClassifierConfig(
                    network="drs-mnist-cnn", width=0.05, encoding=EncodingConfig(mean=(0.5,), std=(0.5,))
                )
            },
            r"another model: encoding .*'mean': \[\].*, asked .*'mean': \[0.5\]",
        ),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(saved, expected, words):
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(saved, **expected)


class TestDamage:
    def refuses(self, folder, words):
        with pytest.raises(CheckpointError, match=words):
            load_checkpoint(folder, classifier=CONFIG, views=VIEWS, num_classes=5)

    def test_no_folder(self, folder):
        self.refuses(folder, r"holds no checkpoint: config.json is missing.\n  Train one:  patchcert train RECIPE")

    def test_a_file_instead_of_a_folder(self, tmp_path):
        (tmp_path / "file").write_text("x")
        self.refuses(Folder(tmp_path / "file"), r"config.json cannot be read: .*Not a directory")

    def test_a_save_that_was_killed(self, saved):
        saved.remove("config.json")
        self.refuses(saved, "holds no checkpoint")

    def test_weights_are_gone(self, saved):
        saved.remove(weights_of(saved))
        self.refuses(saved, r"weights-\w{12}.safetensors cannot be read: .*\n  Restore it, or delete the folder")

    def test_weights_named_outside_the_folder(self, saved, tmp_path):
        config = unsealed(saved)
        (tmp_path / "outside.safetensors").write_bytes(saved.read(config["weights"]))
        saved.write("config.json", sealed_bytes(config | {"weights": "../outside.safetensors"}))
        self.refuses(saved, "outside.safetensors cannot be read: .*leaves its folder")

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"\0" * 100])
    def test_config_is_no_json(self, saved, content):
        saved.write("config.json", content)
        self.refuses(saved, r"config.json cannot be read: .*\n  Restore the folder")

    @pytest.mark.parametrize("content", [b'{"format": 2}', b"{}"])
    def test_config_has_another_format(self, saved, content):
        saved.write("config.json", content)
        self.refuses(saved, "has checkpoint format .*, this version reads format 1")

    @pytest.mark.parametrize("key", ["classifier", "views", "image_channels", "num_classes", "digest"])
    def test_config_lacks_something(self, saved, key):
        config = json.loads(saved.read("config.json"))
        del config[key]
        saved.write("config.json", json.dumps(config).encode())
        self.refuses(saved, f"is damaged: it lacks {key}")

    def test_a_changed_byte_of_the_record(self, saved):
        whole = saved.read("config.json")
        for position in range(0, len(whole), 5):
            saved.write("config.json", whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
            self.refuses(saved, "config.json|holds another model|tells .* classes apart|was trained")

    @pytest.mark.parametrize("position", [0, 50, -1])
    def test_one_bit_of_the_weights(self, saved, position):
        weights = bytearray(saved.read(weights_of(saved)))
        weights[position] ^= 1
        saved.write(weights_of(saved), bytes(weights))
        self.refuses(saved, r"was changed after it was written: digest \w{12} now, \w{12} in config.json")

    def test_truncated_weights(self, saved):
        saved.write(weights_of(saved), saved.read(weights_of(saved))[:-100])
        self.refuses(saved, "was changed after it was written")

    @pytest.mark.parametrize(
        "changes",
        [
            {"num_classes": 6},
            {"image_channels": 3},
            {"views": BandViews(image_size=(9, 12), width=5).identity()},
            {"classifier": ClassifierConfig(network="drs-mnist-cnn", width=0.1).to_json()},
        ],
    )
    def test_an_edited_config(self, saved, changes):
        config = json.loads(saved.read("config.json"))
        saved.write("config.json", json.dumps(config | changes).encode())
        with pytest.raises(CheckpointError, match="was changed after it was written"):
            load_checkpoint(saved)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"views": {"kind": "spiral"}}, "config.json is damaged"),
            ({"views": {}}, "config.json is damaged"),
            ({"views": [1]}, "config.json is damaged"),
            ({"classifier": {"network": "resnet9"}}, "config.json is damaged"),
            ({"classifier": None}, "config.json is damaged"),
            ({"classifier": CONFIG.to_json() | {"width": -1}}, "config.json is damaged.*width"),
            ({"num_classes": 6}, "weights do not fit the network 'drs-mnist-cnn'"),
            ({"image_channels": 3}, "weights do not fit the network 'drs-mnist-cnn'"),
        ],
    )
    def test_a_forged_config(self, saved, changes, words):
        forge(saved, **changes)
        with pytest.raises(CheckpointError, match=words):
            load_checkpoint(saved)

    def test_weights_of_another_network(self, saved):
        forge(saved, weights=safetensors.torch.save({"network.0.weight": torch.zeros(2)}))
        self.refuses(saved, "weights do not fit the network 'drs-mnist-cnn'")


class TestNothingIsExecuted:
    @pytest.fixture
    def trap(self, tmp_path, monkeypatch):
        """An importable module that leaves a mark."""
        mark = tmp_path / "mark"
        (tmp_path / "trap_networks.py").write_text(
            f"open({str(mark)!r}, 'w').close()\n"
            "from patchcert.models.drs_mnist_cnn import drs_mnist_cnn\n"
            "from patchcert.models.config import ClassifierConfig\n"
            "def build(num_input_channels, view_size, num_classes):\n"
            "    config = ClassifierConfig(network='drs-mnist-cnn', width=0.05)\n"
            "    return drs_mnist_cnn(config, num_input_channels, view_size, num_classes)\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        yield mark
        sys.modules.pop("trap_networks", None)

    TRAP = ClassifierConfig(network="trap_networks:build")

    def test_a_config_that_names_code_is_refused(self, saved, trap):
        forge(saved, classifier=self.TRAP.to_json())
        with pytest.raises(CheckpointError, match=r"code that a checkpoint alone may not run.\n  Ask for it by name"):
            load_checkpoint(saved)
        with pytest.raises(CheckpointError, match="another model: network 'trap_networks:build'"):
            load_checkpoint(saved, classifier=CONFIG, views=VIEWS, num_classes=5)
        assert "trap_networks" not in sys.modules
        assert not trap.exists()

    def test_asking_for_it_by_name_runs_it(self, saved, trap):
        forge(saved, classifier=self.TRAP.to_json(), network_code=custom_code_digest(self.TRAP.network))
        assert not trap.exists()
        loaded = load_checkpoint(saved, classifier=self.TRAP)
        assert trap.exists()
        assert torch.equal(loaded.network[0].weight, small_classifier().network[0].weight)

    def test_pickles_are_not_read(self, saved, tmp_path):
        mark = tmp_path / "mark"
        payload = pickle.dumps(_Payload(str(mark)))
        for name in ("weights.pt", "pytorch_model.bin", "weights.pkl", "data.pkl"):
            saved.write(name, payload)
        load_checkpoint(saved)
        forge(saved, weights=payload)
        with pytest.raises(CheckpointError, match="weights do not fit the network"):
            load_checkpoint(saved)
        assert not mark.exists()
        pickle.loads(payload)
        assert mark.exists(), "the payload would have left a mark"


class _Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


class TestClassNames:
    NAMES = ("ant", "bee", "cat", "dog", "elk")

    @pytest.fixture
    def named(self, folder):
        save_checkpoint(small_classifier(), folder, {"class_names": list(self.NAMES)})
        return folder

    def test_the_same_names_in_the_same_order_are_taken(self, named, tmp_path):
        assert load_checkpoint(named, class_names=self.NAMES).num_classes == 5
        save_checkpoint(small_classifier(), Folder(tmp_path / "unnamed"), {})
        assert load_checkpoint(Folder(tmp_path / "unnamed"), class_names=self.NAMES).num_classes == 5

    def test_the_same_names_in_another_order_are_refused_with_both(self, named):
        message = (
            r"was trained on the same classes in another order than the images have: label 1 is 'bee' for the model, "
            r"'cat' in the images \(the model: ant, bee, cat, dog, elk; the images: ant, cat, bee, dog, elk\)"
        )
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(named, class_names=("ant", "cat", "bee", "dog", "elk"))

    def test_other_names_are_refused(self, named):
        with pytest.raises(CheckpointError, match=r"other classes .*: label 4 is 'elk' for the model, 'emu' in the"):
            load_checkpoint(named, class_names=("ant", "bee", "cat", "dog", "emu"))

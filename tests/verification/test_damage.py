"""What ``patchcert verify`` finds, and how it says so."""

import re
import shutil

import numpy as np
import pytest
from records import reseal
from verification import made

from patchcert.cli import main
from patchcert.data import DataConfig, PreparedDataset, prepare
from patchcert.data.storage import Folder
from patchcert.errors import DatasetError, PatchcertError
from patchcert.models.checkpoint import load_checkpoint
from patchcert.studies.results import StudyResult
from patchcert.studies.variance_results import VarianceResult
from patchcert.verification import verify
from patchcert.votes import VoteTable


@pytest.fixture
def digits(prepared_digits, tmp_path):
    """A copy of the prepared digits in a work folder, to be spoiled."""
    copy = tmp_path / "work" / "data" / "digits"
    shutil.copytree(prepared_digits["test"].folder.path() + "/..", copy)
    return copy


def spoil(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_every_split_below_a_folder_is_checked(digits, tmp_path):
    for place in (digits, tmp_path / "work"):
        found = list(verify([str(place)]))
        assert [(item.kind, item.problem) for item in found] == [("prepared split", None)] * 3
        assert {item.checked.partition(",")[0] for item in found} >= {"500 images", "200 images"}
    assert len(list(verify([str(digits / "test"), str(digits / "train")]))) == 2


def test_damage_is_named_and_the_rest_is_checked(digits, capsys):
    (shard,) = (digits / "test").glob("shard-*")
    spoil(shard)
    assert main(["verify", str(digits)]) == 2
    out, messages = capsys.readouterr()
    assert out.count("images, digest") + out.count("DAMAGED") == 3 and out.count("DAMAGED") == 1
    assert "1 of 3 folders are damaged" in messages and f"{shard.name}: row " in messages
    assert "is not what was written" in messages and "Traceback" not in messages


def test_whole_folders_end_with_zero(digits, capsys):
    assert main(["verify", str(digits / "test")]) == 0
    assert "500 images" in capsys.readouterr().out


def test_a_record_that_tells_of_other_rows_is_damage(digits):
    path = digits / "test" / "dataset.json"
    reseal(path, images_per_class=[50] * 10)
    (found,) = verify([str(digits / "test")])
    assert "counts other images of each class" in found.problem


def test_folders_of_nothing_known_are_refused(tmp_path, capsys):
    with pytest.raises(
        DatasetError, match=r"holds nothing that can be verified\n  Give the folder of a prepared split"
    ):
        list(verify([str(tmp_path)]))
    with pytest.raises(DatasetError, match="nowhere is missing"):
        list(verify([str(tmp_path / "nowhere")]))
    assert main(["verify"]) == 2 and "at least one folder" in capsys.readouterr().err


@pytest.fixture(scope="module")
def kinds(honest, tmp_path_factory):
    """A vote table, a checkpoint and a study, in the folders of a work folder."""
    root = tmp_path_factory.mktemp("kinds")
    for source, place in (("table", "votes/table"), ("model", "models/recipe/key"), ("plain_study", "studies/study")):
        shutil.copytree(honest.folder / source, root / place)
    return root


def test_votes_models_and_studies_are_checked_too(kinds, honest):
    found = {item.kind: item for item in verify([str(kinds)])}
    assert set(found) == {"vote table", "checkpoint", "study"}
    assert not any(item.problem for item in found.values())
    assert found["vote table"].checked.startswith(f"500 images in 3 parts, model {honest.digest[:12]}")
    assert "answers follow from 500 images" in found["study"].checked
    assert main(["verify", str(kinds / "studies"), str(kinds / "models")]) == 0


@pytest.fixture(scope="module")
def everything(honest, kinds, tmp_path_factory):
    """One of each kind in one folder, the images prepared in several shards and row groups."""
    root = tmp_path_factory.mktemp("everything")
    shutil.copytree(kinds, root, dirs_exist_ok=True)
    config = DataConfig(dataset="digits", limit=300, rows_per_group=64, rows_per_shard=128)
    prepare(config, (32, 32), str(root / "data"), splits=["test"])
    shutil.copytree(made.variance_study(root / "crops"), root / "variance")
    shutil.rmtree(root / "crops")
    return root


def read_prepared(folder):
    """As training and voting read images."""
    PreparedDataset.open(folder).read(0, 300)


def read_votes(folder):
    """As a study reads votes."""
    table = VoteTable.open(folder)
    for index in range(table.num_parts):
        table.read_part(index)


READERS = {
    "dataset.json": read_prepared,
    "_SUCCESS.json": read_votes,
    "config.json": lambda folder: load_checkpoint(Folder(folder)),
    "summary.json": StudyResult.open,
    "variance.json": VarianceResult.open,
}


@pytest.mark.parametrize("seed", range(5))
def test_no_changed_byte_passes_unseen_by_whoever_reads_it(everything, seed):
    """40 bytes each, 200 in all: every file is as likely, every byte in it, every other value."""
    rng = np.random.default_rng(seed)
    readers = {path.parent: read for name, read in READERS.items() for path in everything.rglob(name)}
    files = sorted(path for folder in readers for path in folder.rglob("*") if path.is_file())
    assert len(readers) == 5 and {path.suffix for path in files} >= {".parquet", ".json", ".safetensors", ".csv"}
    for _ in range(40):
        path = files[rng.integers(len(files))]
        reader, folder = next((readers[folder], folder) for folder in (path.parent, *path.parents) if folder in readers)
        whole = path.read_bytes()
        position = rng.integers(len(whole))
        path.write_bytes(whole[:position] + bytes([whole[position] ^ rng.integers(1, 256)]) + whole[position + 1 :])
        try:
            with pytest.raises(PatchcertError, match=re.escape(str(folder))) as error:
                reader(folder)
            assert path.name in str(error.value) or path.name in READERS or "changed after it was" in str(error.value)
        finally:
            path.write_bytes(whole)
        reader(folder)


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("votes/table/part-00001-of-00003.parquet", "vote table"),
        ("votes/table/_SUCCESS.json", "vote table"),
        ("models/recipe/key/*.safetensors", "checkpoint"),
        ("studies/study/per_image.parquet", "study"),
        ("studies/study/answers.csv", "study"),
    ],
)
def test_damage_of_every_kind_is_named(kinds, file, kind, tmp_path):
    shutil.copytree(kinds, tmp_path / "copy")
    (path,) = (tmp_path / "copy").glob(file)
    spoil(path)
    problems = {item.kind: item.problem for item in verify([str(tmp_path / "copy")]) if item.problem}
    assert set(problems) == {kind}
    assert path.name in problems[kind] or "was changed after it was written" in problems[kind]

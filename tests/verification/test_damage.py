"""What ``patchcert verify`` finds, and how it says so."""

import shutil

import pytest
from records import reseal

from patchcert.cli import main
from patchcert.errors import DatasetError
from patchcert.verification import verify


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

"""What ``patchcert verify`` finds, and how it says so."""

import shutil

import pytest

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
    path.write_text(path.read_text().replace('"images_per_class": [', '"images_per_class": [\n  0,'))
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

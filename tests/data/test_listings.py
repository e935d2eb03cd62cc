"""Listings of folders: what is followed, what is not, and how either is named."""

import os
import tempfile
from pathlib import Path

import pytest

from patchcert.data import Folder
from patchcert.data.listings import is_plain_name, printable


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for name in ("cat/1.png", "cat/old/2.png", "dog/3.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * len(name))
    return folder


def test_files_come_with_size_and_time(photos):
    os.utime(photos / "dog/3.png", ns=(5, 1_700_000_000_123_456_789))
    listing = Folder(photos).listing(recursive=True)
    assert list(listing.files) == ["cat/1.png", "cat/old/2.png", "dog/3.png"] and listing.folders == ["cat", "dog"]
    assert listing.files["dog/3.png"].size == 9
    assert listing.files["dog/3.png"].mtime_ns == 1_700_000_000_123_456_789
    assert listing.problems == {}


def test_links_to_files_and_to_folders_elsewhere_are_followed(photos, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "4.png").write_bytes(b"")
    (photos / "emu").symlink_to(tmp_path / "elsewhere")
    (photos / "dog" / "5.png").symlink_to(photos / "cat" / "1.png")
    listing = Folder(photos).listing(recursive=True)
    assert {"emu/4.png", "dog/5.png"} <= listing.files.keys() and listing.problems == {}
    assert listing.folders == ["cat", "dog", "emu"]


def loop_to_parent(folder):
    (folder / "dog" / "up").symlink_to("..")
    return {"dog/up": "leads to the folder that holds it"}


def loop_to_itself(folder):
    (folder / "dog" / "self").symlink_to(".")
    return {"dog/self": "leads to dog, which is read already"}


def loop_beyond_the_listed_folder(folder):
    (folder / "dog" / "all").symlink_to("../..")
    return {"dog/all": "which holds the folder it lies in"}


def same_folder_twice(folder):
    (folder / "bird").symlink_to("cat")
    return {"bird": "leads to cat, which is read already"}


def dangling_file(folder):
    (folder / "dog" / "lost.png").symlink_to("nowhere.png")
    return {"dog/lost.png": "a link to nowhere.png: where there is nothing"}


def dangling_folder(folder):
    (folder / "ant").symlink_to("/nowhere/at/all")
    return {"ant": "a link to /nowhere/at/all: where there is nothing"}


def link_to_itself(folder):
    (folder / "dog" / "me").symlink_to("me")
    return {"dog/me": "Too many levels of symbolic links"}


def pipe(folder):
    os.mkfifo(folder / "dog" / "pipe.png")
    return {"dog/pipe.png": "a pipe, a socket or a device"}


def undecodable_file(folder):
    (folder / "dog" / os.fsdecode(b"stra\xdfe.png")).write_bytes(b"")
    return {os.fsdecode(b"dog/stra\xdfe.png"): "no UTF-8 text"}


def undecodable_folder(folder):
    (folder / os.fsdecode(b"\xff")).mkdir()
    return {os.fsdecode(b"\xff"): "no UTF-8 text"}


@pytest.mark.parametrize(
    "spoil",
    [
        loop_to_parent,
        loop_to_itself,
        loop_beyond_the_listed_folder,
        same_folder_twice,
        dangling_file,
        dangling_folder,
        link_to_itself,
        pipe,
        undecodable_file,
        undecodable_folder,
    ],
)
def test_what_cannot_be_followed_is_named_and_nothing_is_read_twice(photos, spoil):
    expected = spoil(photos)
    listing = Folder(photos).listing(recursive=True)
    assert listing.problems.keys() == expected.keys()
    assert all(words in listing.problems[name] for name, words in expected.items())
    assert list(listing.files) == ["cat/1.png", "cat/old/2.png", "dog/3.png"]


def test_an_unreadable_folder_inside_is_named(unprivileged):
    with tempfile.TemporaryDirectory() as name:
        locked = Path(name, "cat", "old")
        locked.mkdir(parents=True)
        locked.chmod(0)
        assert Folder(name).listing(recursive=True).problems == {"cat/old": "it cannot be read: Permission denied"}
        locked.chmod(0o755)


def test_a_missing_folder_is_empty_and_a_file_is_an_error(photos):
    assert Folder(photos / "none").listing(recursive=True).files == {}
    with pytest.raises(NotADirectoryError):
        Folder(photos / "dog/3.png").listing()


@pytest.mark.parametrize(
    ("name", "shown"),
    [("plain ä.png", "plain ä.png"), (os.fsdecode(b"\xdf.png"), "\\xdf.png"), ("a\nb\x1b[1m", "a\\nb\\x1b[1m")],
)
def test_any_name_can_be_printed_on_one_line(name, shown):
    assert printable(name) == shown
    printable(name).encode()


@pytest.mark.parametrize(
    ("name", "is_plain"),
    [
        ("answers.parquet", True),
        ("a b-c_d (2), \u00e9\u4e2d$", True),
        ("", False),
        (".", False),
        ("..", False),
        (".hidden", False),
        ("a/b", False),
        ("/a", False),
        ("a\\b", False),
        ("a\nb", False),
        ("a\x1b[2J", False),
        ("a\u202eb", False),
        ("a\ud800", False),
    ],
)
def test_plain_names_are_visible_and_stay_where_they_are_put(name, is_plain):
    assert is_plain_name(name) == is_plain

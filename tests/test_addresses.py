"""No password of an address is shown: not by functions, not by commands, not in files, whatever it is made of."""

import time

import pytest

from patchcert.addresses import masked, masked_address, unclear_letters
from patchcert.cli import main
from patchcert.data.storage import Folder
from patchcert.doctor import ray_reachable
from patchcert.doctor import tracker as tracker_findings
from patchcert.errors import PatchcertError, ResourceError, TrackingError
from patchcert.stages.cluster import connected
from patchcert.stages.resources import Resources
from patchcert.tracking import TrackingConfig
from patchcert.tracking.store import VARIABLE, check_address

SECRET = "hunter2"
# Addresses, and what is left of them.
WITH_PASSWORDS = {
    f"s3://AKIA:{SECRET}@bucket/work": "s3://***@bucket/work",
    f"s3://AKIA:first@{SECRET}@bucket": "s3://***@bucket",
    f"s3://AKIA:{SECRET}@{SECRET}@{SECRET}@bucket": "s3://***@bucket",
    f"s3://AKIA:{SECRET}/with/slashes@bucket/work": "s3://***@bucket/work",
    f"s3://AKIA:first@second/{SECRET}@bucket": "s3://***@bucket",
    f"s3://AKIA:12/{SECRET}@bucket": "s3://***@bucket",
    f"s3://AKIA:/{SECRET}@bucket": "s3://***@bucket",
    f"s3://AKIA:first#{SECRET}@bucket": "s3://***@bucket",
    f"s3://AKIA:first?{SECRET}@bucket": "s3://***@bucket",
    f"s3://AKIA:first:{SECRET}@bucket": "s3://***@bucket",
    f"s3://AKIA:first://{SECRET}@bucket": "s3://***@bucket",
    f"s3://AKIA%3A{SECRET}@bucket": "s3://***@bucket",
    f"s3://AKIA:{SECRET}%40%2F@bucket": "s3://***@bucket",
    f"s3://:{SECRET}@bucket": "s3://***@bucket",
    f"http://me@example.com:{SECRET}@host:5000": "http://***@host:5000",
    f"http://me:{SECRET}@[::1]:5000/x": "http://***@[::1]:5000/x",
    f"http://me:{SECRET}@[::1": "http://***@[::1",
    f"http://me:{SECRET}@host:port": "http://***@host:port",
    f"http://me:99999/{SECRET}@host": "http://***@host",
    f"abfss://account:{SECRET}@store.example.com/x": "abfss://***@store.example.com/x",
    f"s3://bucket/work?region=eu&secret_key={SECRET}": "s3://bucket/work?region=eu&secret_key=***",
    f"s3://bucket/work?secr%65t_key={SECRET}": "s3://bucket/work?secr%65t_key=***",
    f"x://host?a=1;pwd={SECRET}&b=2": "x://host?a=1;pwd=***&b=2",
    f"https://host/back#access_token={SECRET}": "https://host/back#access_token=***",
    f"mssql+pyodbc://?odbc_connect=UID%3Dme%3BPWD%3D{SECRET}": "mssql+pyodbc://?odbc_connect=***",
}
WITHOUT = [
    "hdfs://host:8020/users/me@home",
    "gs://anonymous@bucket/x",
    "abfss://container@account.example.com/x",
    "http://host:5000/#/a",
    "http://[::1]:5000/me@home",
    "http://[fe80::1%25eth0]/me@home",
    "s3://bucket/a:b",
    "s3://bucket/a:b/me@home",
    "s3://bucket?region=eu&scheme=http",
    "sqlite:////tmp/a:b/me@home.db",
    "file:///a/b:c@d",
    "postgresql://me@host/db",
]
# Addresses only when they stand alone: a text may well hold such words.
ALONE = [
    f"me:{SECRET}@host:5000",
    f"me:{SECRET}@host/db",
    f"me:/{SECRET}@host",
    f"me:first://{SECRET}@host",
    f"m_e:{SECRET}@host",
    f"//me:{SECRET}@host",
    f"http:/me:{SECRET}@host",
    f"  http://me:{SECRET}@host",
    f"s3://me:first {SECRET}@bucket",
    f"s3://me:first\n{SECRET}@bucket",
]


class TestMasked:
    @pytest.mark.parametrize(("address", "shown"), WITH_PASSWORDS.items())
    def test_a_password_is_cut_out_up_to_the_last_at_sign(self, address, shown):
        assert masked(address) == masked_address(address) == shown
        assert masked(f"cannot open '{address} now") == f"cannot open '{shown} now"

    @pytest.mark.parametrize("address", WITHOUT)
    def test_what_holds_none_is_left_alone(self, address):
        assert masked(address) == masked_address(address) == address

    @pytest.mark.parametrize("address", ALONE)
    def test_addresses_that_no_program_takes_are_masked_all_the_same(self, address):
        assert SECRET not in masked_address(address) and "***@" in masked_address(address)

    @pytest.mark.parametrize("first", ["s3://a", "hdfs://host:80/x", "http://[::1]:80/x", "gs://me@b"])
    def test_every_address_of_a_list(self, first):
        assert SECRET not in masked(f"{first},s3://key:{SECRET}@bucket and s3://key:{SECRET}@bucket")

    @pytest.mark.parametrize("text", ["s3://", "s3://k:@", "a", "?a=", "?", "hdfs://h:80/", "http://["])
    def test_long_texts_take_no_time(self, text):
        start = time.perf_counter()
        masked(text * (20_000 // len(text)) + "@")
        assert time.perf_counter() - start < 2

    def test_letters_about_which_programs_disagree_are_named(self):
        assert unclear_letters("http://me:a@b@host") == "" and unclear_letters("postgresql://me:a@b@host/db") == "@"
        assert unclear_letters("http://me:a/b#c?d@host") == "/#?" and unclear_letters("http://host/a@b?c") == ""


HOSTILE = [
    f"postgresql://me:first@{SECRET}@host/db",
    f"postgresql://me:first/{SECRET}@host/db",
    f"postgresql://me:{SECRET}@host:port/db",
    f"http://me:12#{SECRET}@host",
    f"http://me:12/{SECRET}@host",
    f"http://me:first[{SECRET}@host",
    f"http://me:{SECRET}\u2100@host",
    f"http://me:{SECRET}@[::1:5000",
    f"http://me:{SECRET}@host:port",
    f"http://me:first {SECRET}@host",
    f"foo://me:{SECRET}@host",
    f"http:/me:{SECRET}@host",
    f"me:{SECRET}@host:5000",
    f"m_e:{SECRET}@host",
]


class TestTrackers:
    @pytest.mark.parametrize("address", HOSTILE)
    def test_an_address_that_cannot_be_parsed_is_refused_without_its_password(self, address, monkeypatch):
        with pytest.raises(TrackingError, match=r"the tracker's address '[a-z]*:?/?/?\*\*\*@") as caught:
            check_address(address)
        assert SECRET not in str(caught.value)
        monkeypatch.setenv(VARIABLE, address)
        with pytest.raises(TrackingError) as caught:
            check_address(None)
        assert SECRET not in str(caught.value)

    @pytest.mark.parametrize(
        "address",
        [
            f"http://me:a@{SECRET}@127.0.0.1:9",
            f"http://me:{SECRET}%2F%23@127.0.0.1:9",
            f"postgresql://me:{SECRET}%40@127.0.0.1:9/db",
            f"https://me:{SECRET}@[::1]:9/base",
        ],
    )
    def test_addresses_that_can_be_parsed_are_taken_and_shown_masked(self, address, tmp_path):
        check_address(address)
        (finding,) = tracker_findings(TrackingConfig(uri=address), Folder(tmp_path))
        assert SECRET not in str(finding) and "***@" in finding.found


@pytest.mark.parametrize("address", [*WITH_PASSWORDS, f"s3://me:first {SECRET}@bucket", f"s3://me:a\n{SECRET}@bucket"])
def test_folders_are_refused(address):
    with pytest.raises(ResourceError, match=r"holds a password") as caught:
        Folder(address)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "address", [f"me:{SECRET}@127.0.0.1:9", f"ray://me:{SECRET}@127.0.0.1:9", f"me:{SECRET}@[::1]:9"]
)
def test_a_cluster_that_does_not_answer(address, monkeypatch):
    # Whatever Ray another test of this process may have left connected.
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with (
        pytest.raises(PatchcertError, match=r"cannot connect to Ray at (ray://)?\*\*\*@") as caught,
        connected(Resources(address=address)),
    ):
        pass
    (finding,) = ray_reachable(Resources(address=address), False)
    assert SECRET not in f"{caught.value} {finding}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    (finding,) = ray_reachable(Resources(), False)
    assert SECRET not in str(finding)


@pytest.mark.parametrize(
    "words",
    [
        ["ADDRESS"],
        ["prepare", "ADDRESS"],
        ["study", "ADDRESS"],
        ["show", "ADDRESS"],
        ["report", "ADDRESS"],
        ["publish", "ADDRESS"],
        ["ui", "ADDRESS"],
        ["train", "column4-digits", "--trackin.uri", "ADDRESS"],
        ["train", "column4-digits", "--training.epochs", "ADDRESS"],
        ["train", "column4-digits", "ADDRESS"],
        ["prepare", "column4-digits", "--work", "ADDRESS"],
        ["prepare", "column4-digits", "--data.source", "ADDRESS"],
        ["study", "column4-digits", "--checkpoint", "ADDRESS"],
        ["study", "column4-digits", "--votes", "ADDRESS"],
        ["study", "rc-cifar10", "--suite", "ADDRESS"],
        ["ui", "--prot", "ADDRESS"],
    ],
    ids=lambda words: " ".join(words),
)
def test_commands_do_not_repeat_a_password(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for address in (f"postgresql://me:{SECRET}@host/db", f"s3://AKIA:first@{SECRET}@bucket/x"):
        try:
            code = main([address if word == "ADDRESS" else word for word in words])
        except SystemExit as error:
            code = error.code
        output = "".join(capsys.readouterr())
        assert code == 2 and output and SECRET not in output and "Traceback" not in output
    assert SECRET not in "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())

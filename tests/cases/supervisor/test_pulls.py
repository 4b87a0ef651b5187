"""What a pull will fetch, how often it tells of it, how long it waits, and whether there is room."""

from pathlib import Path, PurePath

import pytest

from llamaherd_shared.commands import PullModel
from llamaherd_shared.errors import Rejected
from llamaherd_supervisor.models import part_paths
from llamaherd_supervisor.pulls.pace import (
    MAX_WAIT_S,
    SPARE_BYTES,
    Told,
    find_shortage,
    is_worth_telling,
    parse_retry_after,
    retry_delay_s,
)
from llamaherd_supervisor.pulls.plan import Plan, plan_choice, plan_url, public_url
from llamaherd_supervisor.pulls.repository import Choice, HubFile
from llamaherd_supervisor.settings import read_reference

PARTS = tuple(HubFile(name=f"Q4/m-0000{part}-of-00002.gguf", size_bytes=part, sha256="ab") for part in (1, 2))


def test_repositorys_files_go_into_a_folder_of_its_own() -> None:
    plan = plan_choice("https://hub/", "a/b", "refs/pr/1", Choice("m", "Q4", PARTS), name="")

    assert plan.model == "m"
    assert plan.total_bytes == 3
    assert [file.target for file in plan.files] == ["a/b/m-00001-of-00002.gguf", "a/b/m-00002-of-00002.gguf"]
    assert plan.files[0].url == "https://hub/a/b/resolve/refs%2Fpr%2F1/Q4/m-00001-of-00002.gguf"


def test_projector_comes_behind_the_model_and_is_told_apart() -> None:
    choice = Choice("m", "Q4", PARTS[:1], HubFile(name="mmproj-F16.gguf", size_bytes=5))
    plan = plan_choice("https://hub", "a/b", "c1", choice, name="")

    assert [(file.target, file.is_projector) for file in plan.files] == [
        ("a/b/m.gguf", False),
        ("a/b/mmproj-m-F16.gguf", True),
    ]
    assert plan.parts == plan.files[:1]
    assert plan.total_bytes == 6


def test_plan_is_moved_to_where_the_model_is_with_its_projector() -> None:
    choice = Choice("m", "Q4", PARTS[:1], HubFile(name="mmproj-m.gguf", size_bytes=5))

    moved = plan_choice("https://hub", "a/b", "c1", choice, name="").moved(PurePath("own/m.gguf"))

    assert [file.target for file in moved.files] == ["own/m.gguf", "own/mmproj-m.gguf"]
    assert not moved.may_replace


def test_total_is_unknown_while_a_file_is() -> None:
    unknown = (PARTS[0], HubFile(name="m-00002-of-00002.gguf"))

    assert plan_choice("https://hub", "a/b", "main", Choice("m", "", unknown), name="n").total_bytes == 0


def test_same_bytes_in_the_same_place_are_the_same_plan() -> None:
    def plan(name: str = "", commit: str = "c1") -> Plan:
        return plan_choice("https://hub", "a/b", commit, Choice("m", "", PARTS[:1]), name=name)

    assert plan().is_same(plan(name="m"))
    assert not plan().is_same(plan(name="n"))
    assert not plan().is_same(plan(commit="c2"))


def test_url_is_saved_under_its_own_or_the_given_name() -> None:
    own = plan_url(PullModel(url="http://h:1/x/m.gguf?key=1"))
    given = plan_url(PullModel(url="http://h/blobs/1", name="mine", sha256="sha256:" + "AB" * 32))

    assert (own.model, own.files[0].target) == ("m", "m.gguf")
    assert own.files[0].url == "http://h:1/x/m.gguf?key=1"
    assert own.source == "http://h:1/x/m.gguf"
    assert (given.model, given.files[0].sha256) == ("mine", "ab" * 32)


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (PullModel(url="ftp://h/m.gguf"), "must begin with http"),
        (PullModel(url="http://"), "must begin with http"),
        (PullModel(url="http://h:x/m.gguf"), "cannot be read"),
        (PullModel(url="http://h/blob"), "give one"),
        (PullModel(url="http://h/m.gguf", sha256="12"), "64 hexadecimal"),
        (PullModel(url="http://h/m.gguf", name="a/b"), "cannot be the name"),
    ],
)
def test_url_that_cannot_be_pulled_is_refused(wanted: PullModel, sentence: str) -> None:
    with pytest.raises(Rejected, match=sentence):
        plan_url(wanted)


def test_public_address_holds_nothing_secret() -> None:
    assert public_url("https://me:pw@[::1]:8/a/b?key=1#x") == "https://[::1]:8/a/b"


def test_command_never_shows_its_token_or_url() -> None:
    shown = repr(PullModel(url="http://h/m?key=k3y", token="t0k3n", name="m"))

    assert "t0k3n" not in shown
    assert "k3y" not in shown
    assert "name='m'" in shown


@pytest.mark.parametrize(
    ("after_s", "done", "note", "told"),
    [
        (0.1, 900, "", False),
        (0.25, 900, "", True),
        (0.25, 101, "", True),
        (0.25, 100, "", False),
        (9.0, 100, "", False),
        (0.0, 100, "waiting", True),
    ],
)
def test_progress_is_told_at_most_four_times_a_second(after_s: float, done: int, note: str, told: bool) -> None:
    before = Told(5.0, 100, "")

    found = is_worth_telling(before, done_bytes=done, total_bytes=1000, note=note, now_s=5.0 + after_s)

    assert found is told


def test_slow_progress_of_a_large_file_is_told_once_a_second() -> None:
    before = Told(0.0, 0, "")
    times = [0.25, 0.5, 0.75, 1.0]

    told = [is_worth_telling(before, done_bytes=1, total_bytes=10**12, note="", now_s=now_s) for now_s in times]

    assert told == [False, False, False, True]


def test_wait_doubles_unless_the_hub_says_how_long() -> None:
    delays = [retry_delay_s(attempt, base_s=1, asked_s=None, jitter=0.5) for attempt in (1, 2, 3, 20)]

    assert delays == [1, 2, 4, MAX_WAIT_S]
    assert retry_delay_s(1, base_s=1, asked_s=None, jitter=0) == 0.75
    assert retry_delay_s(9, base_s=1, asked_s=7, jitter=1) == 7
    assert retry_delay_s(1, base_s=1, asked_s=10**6, jitter=1) == MAX_WAIT_S


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("30", 30.0), ("0.5", 0.5), ("-1", 0.0), ("Sat, 01 Jan 2000 00:00:40 GMT", 40.0), ("soon", None), ("", None)],
)
def test_retry_after_is_seconds_or_a_date(header: str, seconds: float | None) -> None:
    assert parse_retry_after(header, now_s=946_684_800.0) == seconds


def test_shortage_is_told_with_its_arithmetic() -> None:
    assert find_shortage(needed_bytes=100, free_bytes=SPARE_BYTES + 100) == ""
    assert find_shortage(needed_bytes=0, free_bytes=0) == ""
    sentence = find_shortage(needed_bytes=1000, free_bytes=SPARE_BYTES, others_bytes=2000)
    there = f"the disk has {SPARE_BYTES:,} free"
    assert sentence == f"it needs 1,000 bytes, {there}, other pulls will take 2,000, and {SPARE_BYTES:,} stay free"


def test_parts_of_a_split_model_are_found_by_its_first() -> None:
    assert part_paths("/m/a.gguf") == ["/m/a.gguf"]
    assert part_paths("/m/a-00001-of-00002.GGUF") == ["/m/a-00001-of-00002.GGUF", "/m/a-00002-of-00002.GGUF"]


def test_secret_is_read_where_the_setting_points(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-file\n")
    environment = {"HF_TOKEN": " from-env "}

    def read(reference: str) -> str:
        return read_reference(reference, environment, setting="supervisor.hub_token")

    assert read("env:HF_TOKEN") == "from-env"
    assert read("env:OTHER") == ""
    assert read(f"file:{tmp_path / 'token'}") == "from-file"
    assert read("hf_plain") == "hf_plain"
    with pytest.raises(Rejected, match=r"No such file or directory \(`supervisor.hub_token`\)"):
        read(f"file:{tmp_path / 'none'}")

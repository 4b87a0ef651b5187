"""Rights on the embedded nats-server follow from the table of subjects."""

import re

import pytest

from llamaherd.permissions import ADMIN, SERVICES, USERS, Permissions, inbox_prefix, permissions_of
from llamaherd_shared.bus import connection
from llamaherd_shared.streams import STREAMS
from llamaherd_shared.subjects import TABLE, Subjects

SUBJECTS = Subjects("herd")


def allows(patterns: tuple[str, ...], subject: str) -> bool:
    """Whether an allow list covers a subject, by NATS's rules for `*` and `>`."""
    return any(re.fullmatch(_as_regex(pattern), subject) for pattern in patterns)


def _as_regex(pattern: str) -> str:
    tokens = ["[^.]+" if token == "*" else ".+" if token == ">" else re.escape(token) for token in pattern.split(".")]
    return r"\.".join(tokens)


@pytest.fixture(params=USERS)
def user(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def rights(user: str) -> Permissions:
    return permissions_of(user, prefix="herd")


@pytest.mark.parametrize(
    ("subject", "writer"),
    [
        (SUBJECTS.instance("box", "llama-3.1", 0), "supervisor"),
        (SUBJECTS.model("box", "llama-3.1"), "supervisor"),
        (SUBJECTS.node("box"), "supervisor"),
        (SUBJECTS.access("k7q2mzxa"), "ui"),
        (SUBJECTS.request("box", "llama-3.1", "ok"), "gateway"),
        (SUBJECTS.sample("box", "gpu/0"), "metrics"),
        (SUBJECTS.usage("g1"), "gateway"),
        (SUBJECTS.conversation("k7q2mzxa", "resp_1"), "gateway"),
    ],
)
def test_a_kind_of_fact_has_exactly_one_writer(subject: str, writer: str) -> None:
    writers = {one for one in USERS if allows(rights(one).publish, subject)}

    assert writers == {writer}


def test_nobody_signs_log_lines_or_presence_with_another_name() -> None:
    for mine in SERVICES:
        for theirs in SERVICES:
            for subject in (SUBJECTS.log("box", theirs, "17"), SUBJECTS.presence("box", theirs)):
                assert allows(rights(mine).publish, subject) == (mine == theirs)


def test_the_supervisor_alone_speaks_for_llama_servers() -> None:
    subject = SUBJECTS.log("box", "llama-server", "llama-3.1/0")

    assert {one for one in USERS if allows(rights(one).publish, subject)} == {"supervisor"}


def test_commands_are_given_by_callers_and_heard_by_the_one_who_answers() -> None:
    load = SUBJECTS.command("supervisor", "load", node="box")

    assert {one for one in ("gateway", "ui", ADMIN) if allows(rights(one).publish, load)} == {"gateway", "ui", ADMIN}
    assert {one for one in SERVICES if allows(rights(one).subscribe, load)} == {"supervisor"}
    assert rights("supervisor").responds
    assert not rights("ui").responds


def test_gateways_alone_hear_what_keys_have_used_on_others() -> None:
    assert {one for one in SERVICES if allows(rights(one).subscribe, SUBJECTS.usage("g1"))} == {"gateway"}
    assert {one for one in SERVICES if allows(rights(one).subscribe, SUBJECTS.access("k7q2mzxa"))} >= {"gateway", "ui"}


def test_everybody_has_an_inbox_and_nobody_hears_another_ones(user: str) -> None:
    heard = {other for other in USERS if allows(rights(user).subscribe, f"{inbox_prefix(other)}.x.1")}

    assert heard == {user}
    assert inbox_prefix(user) == connection.inbox_prefix(user)


def test_everybody_may_ensure_the_streams_and_nobody_may_destroy_one(user: str) -> None:
    publish = rights(user).publish

    for stream in STREAMS:
        assert all(allows(publish, f"$JS.API.STREAM.{verb}.{stream.name}") for verb in ("INFO", "CREATE", "UPDATE"))
        assert not any(allows(publish, f"$JS.API.STREAM.{verb}.{stream.name}") for verb in ("DELETE", "PURGE"))
        deletes = allows(publish, f"$JS.API.STREAM.MSG.DELETE.{stream.name}")
        assert deletes == (stream.private and user == "gateway")


def test_what_people_wrote_is_for_gateways_which_ask_for_it_by_name() -> None:
    kept = SUBJECTS.conversation("k7q2mzxa", "resp_1")
    (name,) = [stream.name for stream in STREAMS if stream.private]

    assert {one for one in USERS if allows(rights(one).publish, f"$JS.API.DIRECT.GET.{name}.{kept}")} == {"gateway"}
    for one in USERS:
        assert not allows(rights(one).subscribe, kept)
        for ask in ("STREAM.MSG.GET", "CONSUMER.CREATE", "CONSUMER.MSG.NEXT"):
            assert not allows(rights(one).publish, f"$JS.API.{ask}.{name}.c")
            assert not allows(rights(one).publish, f"$JS.API.{ask}.{name}")


def test_a_service_reads_only_the_streams_its_rows_name() -> None:
    def reads(user: str) -> set[str]:
        names = {stream.name for stream in STREAMS}
        return {name for name in names if allows(rights(user).publish, f"$JS.API.CONSUMER.MSG.NEXT.{name}.c")}

    assert "HERD_LOGS" in reads("logs")
    assert "HERD_REQUESTS" not in reads("supervisor")
    assert "HERD_METRICS" not in reads("gateway")
    assert reads(ADMIN) == {stream.name for stream in STREAMS if not stream.private}


def test_every_writer_and_reader_of_the_table_is_known() -> None:
    known = {*SERVICES, "every service", "nats-server", "your subscriber", ADMIN}

    for row in TABLE:
        assert {name.strip() for name in f"{row.writer},{row.readers}".split(",")} <= known, row


@pytest.mark.parametrize("prefix", ["herd", "lab", "team.lab"])
def test_rights_follow_the_prefix(prefix: str) -> None:
    assert allows(permissions_of("metrics", prefix=prefix).publish, Subjects(prefix).sample("box", "host"))

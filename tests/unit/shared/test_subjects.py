from llamaherd_shared.subjects import TABLE, Subjects, encode_token


def test_a_model_name_with_dots_and_slashes_stays_one_token() -> None:
    assert encode_token("meta-llama/Llama-3.1 8B") == "meta-llama=2FLlama-3=2E1=208B"


def test_commands_go_to_a_service_or_to_a_service_on_a_node() -> None:
    subjects = Subjects("herd")

    assert subjects.command("logs", "query") == "herd.cmd.logs.query"
    assert subjects.command("supervisor", "load", node="gpu.1") == "herd.cmd.supervisor.gpu=2E1.load"


def test_the_live_copy_of_a_subject_keeps_its_tokens() -> None:
    subjects = Subjects("lab")

    assert subjects.live(subjects.instance("n", "m", 0)) == "lab.live.ev.instance.n.m.0"


def test_every_row_of_the_table_names_writer_readers_and_meaning() -> None:
    assert all(row.shape and row.writer and row.readers and row.meaning for row in TABLE)
    assert len({row.shape for row in TABLE}) == len(TABLE)

from llamaherd_supervisor.router.lines import Ports, Sorted, sort_line

SPAWNED = "0.23.718.021 I srv          load: spawning server instance with name=my model on port 60627"
SAID = "[60627] 0.00.005.790 I srv  llama_server: initializing ..."
EXITED = "0.23.717.882 I srv           run: instance name=my model exited with status 0"
KNOWN: Ports = {60627: "my model"}


def test_a_line_behind_a_port_is_that_of_the_model_there() -> None:
    text = "0.00.005.790 I srv  llama_server: initializing ..."

    assert sort_line(KNOWN, SAID) == (KNOWN, Sorted(text=text, model="my model", port=60627))


def test_a_short_port_is_read_too() -> None:
    assert sort_line({80: "m"}, "[   80] hello")[1] == Sorted(text="hello", model="m", port=80)


def test_a_port_that_nobody_has_leaves_the_line_to_the_router() -> None:
    assert sort_line({}, SAID) == ({}, Sorted(text=SAID))


def test_the_router_tells_who_begins_where_and_who_ends() -> None:
    began = sort_line({5: "other", 6: "my model"}, SPAWNED)
    ended = sort_line(KNOWN, EXITED)

    assert began == ({5: "other", 60627: "my model"}, Sorted(text=SPAWNED, port=60627))
    assert ended == (KNOWN, Sorted(text=EXITED, port=60627, ends=True))


def test_other_lines_are_the_routers() -> None:
    assert sort_line(KNOWN, "[x] listening") == (KNOWN, Sorted(text="[x] listening"))

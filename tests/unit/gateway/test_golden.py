"""The recorded answers are those that `tests/golden/cases.py` asks for."""

from golden.cases import CASES, SERVERS

from harness.golden import FOLDER, golden_index


def test_every_case_has_been_recorded_and_nothing_else() -> None:
    names = [case.name for cases in CASES.values() for case in cases]
    assert sorted(file.partition(".")[0] for file in golden_index()) == sorted(set(names))
    assert len(set(names)) == len(names)
    assert CASES.keys() == SERVERS.keys()


def test_no_answer_tells_of_the_machine_it_was_recorded_on() -> None:
    for file in golden_index():
        assert b"/home/" not in (FOLDER / file).read_bytes()
        assert b'"model_path":"/' not in (FOLDER / file).read_bytes()

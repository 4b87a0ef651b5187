"""Which files of a repository are meant, whatever is in it."""

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from llamaherd_shared.errors import HerdError
from llamaherd_supervisor.pulls.repository import HubFile, choose


@settings(max_examples=500, deadline=None)
@given(st.lists(st.text(st.sampled_from("ab/.-_01Q4KMgguf\x00"), max_size=30)), st.text(max_size=10))
def test_any_list_of_files_leads_to_a_choice_or_a_sentence(names: list[str], wanted: str) -> None:
    files = [HubFile(name=f"{name}.gguf", size_bytes=1) for name in names]

    with contextlib.suppress(HerdError):
        assert choose("owner/name", files, wanted).files

"""The README shows the table as it is."""

from pathlib import Path

from llamaherd_supervisor.lifecycle import mermaid

README = Path(__file__).parents[3] / "services" / "supervisor" / "README.md"


def test_diagram_in_the_readme_is_the_table() -> None:
    assert f"```mermaid\n{mermaid()}\n```" in README.read_text()

"""The docs say what the code does: generated tables are current, every setting is described, links lead somewhere."""

import importlib.util
import re
from pathlib import Path

import msgspec
import pytest

from llamaherd_shared.settings import load_settings

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
assert SPEC is not None
assert SPEC.loader is not None
tables = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tables)

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("services/*/README.md")]


def test_the_generated_tables_are_current() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()

    assert tables.render(page) == page, "run `just docs`"


@pytest.mark.parametrize("section", tables.SETTINGS)
def test_every_setting_is_described(section: str) -> None:
    type_ = tables.SETTINGS[section]
    described = tables.attribute_docs(type_)

    obvious = {"nats_url", "log_level"}
    assert {field.name for field in msgspec.structs.fields(type_)} - set(described) - obvious == set()


@pytest.mark.parametrize("section", [name for name in tables.SETTINGS if name])
def test_the_example_configuration_is_accepted(section: str) -> None:
    load_settings(tables.SETTINGS[section], section, config=ROOT / "deploy" / "llamaherd.example.yaml", environ={})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_two_commands_stand_at_the_top_of_the_readme() -> None:
    top = "\n".join((ROOT / "README.md").read_text().splitlines()[:25])

    assert "pip install uv && uv run llamaherd up --demo" in top
    assert "uv run just test" in top

"""The docs say what the code does: generated tables are current, every setting is described, links lead somewhere."""

import re
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from harness.curl import parse_line
from harness.generators import load_generator
from llamaherd_gateway.paths import Paths
from llamaherd_gateway.routes import find_route
from llamaherd_shared.settings import load_models, load_settings

ROOT = Path(__file__).parents[2]
tables, api = load_generator("tables"), load_generator("api")

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("services/*/README.md")]


@pytest.mark.parametrize("path", tables.PAGES, ids=lambda path: path.name)
def test_the_generated_tables_are_current(path: Path) -> None:
    page = path.read_text()

    assert tables.render(page) == page, "run `just docs`"


def test_the_page_of_routes_is_current() -> None:
    page = api.PAGE.read_text()

    assert api.render(page) == page, "run `just docs`"


def test_every_route_says_what_it_is_about() -> None:
    assert [entry.title for entry in api.entries() if not entry.about] == []


def test_every_route_that_is_relayed_has_an_example() -> None:
    assert [row.path for row in api.ROUTES if not row.example] == []


def test_the_example_of_a_route_leads_to_it() -> None:
    rows = api.rows()
    paths = Paths(rows)
    for row in rows:
        asked = parse_line(api.render_line(row.method, row.path, row.example))

        path = asked.path.encode()
        relayed = find_route(asked.method.encode(), path, path, ())
        others = [found for found, _ in paths.find(asked.path)]
        assert asked.method == row.method, row.path
        assert "{" not in asked.path, row.path
        assert relayed is row or any(other is row for other in others), row.path


def test_no_two_routes_of_a_dialect_are_the_same() -> None:
    counts = Counter((row.dialect.name, row.method, row.path) for row in api.rows())

    assert [key for key, count in counts.items() if count > 1] == []


def test_every_section_of_the_page_holds_routes() -> None:
    assert {entry.section for entry in api.entries()} == set(api.SECTIONS)


@pytest.mark.parametrize("section", tables.SETTINGS)
def test_every_setting_is_described(section: str) -> None:
    type_ = tables.SETTINGS[section]
    described = tables.attribute_docs(type_)

    obvious = {"nats_url", "log_level"}
    assert {field.name for field in msgspec.structs.fields(type_)} - set(described) - obvious == set()


@pytest.mark.parametrize("section", [name for name in tables.SETTINGS if name])
def test_the_example_configuration_is_accepted(section: str) -> None:
    load_settings(tables.SETTINGS[section], section, config=ROOT / "deploy" / "llamaherd.example.yaml", environ={})


def test_the_example_configuration_says_what_can_be_said_about_models() -> None:
    load_models(config=ROOT / "deploy" / "llamaherd.example.yaml", environ={})


def test_the_example_of_the_page_about_models_is_accepted(tmp_path: Path) -> None:
    example = (ROOT / "docs" / "models.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    config = tmp_path / "llamaherd.yaml"
    config.write_text(example)

    models = load_models(config=config, environ={})

    assert models.spec("qwen3-coder-30b").said["cache_type_k"] == "q8_0"
    assert models.spec("nomic-embed").ttl_s is None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_two_commands_stand_at_the_top_of_the_readme() -> None:
    top = "\n".join((ROOT / "README.md").read_text().splitlines()[:25])

    assert "pip install uv && uv run llamaherd up --demo" in top
    assert "uv run just test" in top

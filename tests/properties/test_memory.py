"""Lives of a node whose models do not all fit: loads, requests, crashes, hangs, restarts of the supervisor, time.

`just properties --histories 100000 -k memory` leads as many as that.
"""

from collections.abc import Callable
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from harness.simulated_node import Model, SimulatedNode
from llamaherd_supervisor.eviction import Group, Key, Rules
from llamaherd_supervisor.lifecycle import Limits, State

RULES = Rules(
    min_residence_s=5, patience_s=30, release_s=10, groups={"swap": Group(swap=True), "alone": Group(exclusive=True)}
)
LIMITS = Limits(max_load_crashes=2, max_crashes=3, load_stall_s=60, backoff_max_s=8)
NAMES = tuple("abcdef")
MODELS = st.fixed_dictionaries(
    {
        name: st.builds(
            Model,
            needs=st.integers(1, 8),
            used_ratio=st.sampled_from([0.5, 0.9, 1.0]),
            priority=st.integers(0, 2),
            group=st.sampled_from(["", "", "", "swap", "swap", "alone"]),
            pinned=st.sampled_from([False, False, False, True]),
            replicas=st.sampled_from([1, 1, 1, 2]),
            max_replicas=st.sampled_from([1, 1, 2, 3]),
        )
        for name in NAMES
    }
)
ANY = st.sampled_from(NAMES)
ANY_INSTANCE = st.tuples(ANY, st.sampled_from([0, 0, 0, 1, 1, 2]))
FEW = 1000

TOLD_EVERY = 5000
"""Histories between two lines about how far a long run is."""

entered: set[State] = set()
left: set[State] = set()


class Lives(RuleBasedStateMachine):
    """What holds at any moment is asserted by the node itself."""

    led: ClassVar[int] = 0
    """Histories that have come to their end."""
    tell: ClassVar[Callable[[str], None]]

    node: SimulatedNode
    endless: bool
    """Whether requests never end, when all is over."""

    @initialize(models=MODELS, limit=st.integers(4, 12), endless=st.booleans())
    def begin(self, models: dict[str, Model], limit: int, endless: bool) -> None:
        self.node = SimulatedNode(models, limit, RULES, LIMITS)
        self.endless = endless

    @rule(name=ANY)
    def load(self, name: str) -> None:
        self.node.load(name)

    @rule(name=ANY)
    def unload(self, name: str) -> None:
        self.node.unload(name)

    @rule(name=ANY)
    def change_mind(self, name: str) -> None:
        self.node.change_mind(name)

    @rule(name=ANY)
    def grow(self, name: str) -> None:
        self.node.grow(name)

    @rule(name=ANY)
    def shrink(self, name: str) -> None:
        self.node.shrink(name)

    @rule(name=ANY)
    def request(self, name: str) -> None:
        self.node.begin_request(name)

    @rule(key=ANY_INSTANCE)
    def answer(self, key: Key) -> None:
        self.node.end_request(key)

    @rule(key=ANY_INSTANCE)
    def ready(self, key: Key) -> None:
        self.node.become_ready(key)

    @rule(key=ANY_INSTANCE)
    def crash(self, key: Key) -> None:
        self.node.crash(key)

    @rule(key=ANY_INSTANCE)
    def hang(self, key: Key) -> None:
        self.node.hang(key)

    @rule()
    def restart(self) -> None:
        self.node.restart_supervisor()

    @rule(seconds=st.sampled_from([1, 6, 40]))
    def wait(self, seconds: int) -> None:
        self.node.pass_time(seconds)

    @invariant()
    def comes_to_rest(self) -> None:
        if hasattr(self, "node"):
            self.node.settle()

    def teardown(self) -> None:
        if not hasattr(self, "node"):
            return
        assert self.node.serve_all(endless=self.endless) == []
        entered.update(self.node.entered)
        left.update(self.node.left)
        Lives.led += 1
        if self.led % TOLD_EVERY == 0:
            self.tell(f"{self.led:,} histories led")


@pytest.mark.timeout(0)
def test_memory_is_never_promised_twice_nobody_at_work_is_unloaded_and_every_wait_ends(
    request: pytest.FixtureRequest,
) -> None:
    histories = request.config.getoption("--histories")
    plugins = request.config.pluginmanager

    def tell(line: str) -> None:
        with plugins.getplugin("capturemanager").global_and_fixture_disabled():
            print(f" {line}", flush=True)

    Lives.tell = staticmethod(tell)

    run_state_machine_as_test(
        Lives,
        settings=settings(
            max_examples=histories,
            stateful_step_count=30,
            deadline=None,
            # A few are the same at every run: so they are known to lead through all states.
            derandomize=histories <= FEW,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )

    assert entered == left == set(State)
    assert Lives.led >= histories

"""What whoever runs the herd has decided, as it changes."""

from llamaherd_gateway.routing.policy import Policy
from llamaherd_shared.model_spec import Models, ModelSpec


def test_what_holds_for_a_model_is_found() -> None:
    policy = Policy(Models({"*": {"concurrency": 1}, "qwen": {"concurrency": 2, "fallback": "small"}}))

    assert policy.of("qwen") == ModelSpec(concurrency=2, fallback="small")
    assert policy.of("other") == ModelSpec(concurrency=1)


def test_the_gateways_own_aliases_count_more_than_those_of_models() -> None:
    models = Models({"qwen": {"aliases": ["gpt-4o", "claude-*"]}})

    assert Policy(models, aliases={"gpt-4o": "llama"}).aliases == {"gpt-4o": "llama", "claude-*": "qwen"}


def test_whoever_listens_hears_of_a_change_once_it_holds() -> None:
    policy = Policy(Models({"m": {"concurrency": 1}}))
    heard = []
    policy.of("m")
    policy.on_change.append(lambda: heard.append((policy.of("m").concurrency, dict(policy.aliases))))

    policy.replace(Models({"m": {"concurrency": 2, "aliases": ["a"]}}), aliases={}, default_model="m")

    assert heard == [(2, {"a": "m"})]
    assert policy.default_model == "m"

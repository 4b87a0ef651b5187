from llamaherd_shared.upstream_key import ROUTER, upstream_key


def test_each_spawn_of_each_instance_has_its_own_key() -> None:
    keys = {
        upstream_key(secret, node=node, model=model, index=index, generation=generation)
        for secret in (b"a", b"b")
        for node in ("n1", "n2")
        for model in ("m1", "m2")
        for index in (0, 1)
        for generation in (1, 2)
    }

    assert len(keys) == 32


def test_both_sides_compute_the_same_key() -> None:
    key = upstream_key(b"secret", node="n", model="m", index=0, generation=1)

    assert key == upstream_key(b"secret", node="n", model="m", index=0, generation=1)
    assert len(key) == 64


def test_models_of_a_router_have_their_routers_key() -> None:
    def key(model: str, generation: int, router_generation: int) -> str:
        return upstream_key(
            b"s", node="n", model=model, index=0, generation=generation, router_generation=router_generation
        )

    assert key("a", 1, 4) == key("b", 7, 4) == key(ROUTER, 4, 0)
    assert len({key("a", 1, 0), key("a", 1, 1), key("a", 1, 2)}) == 3

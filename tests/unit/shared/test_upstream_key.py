from llamaherd_shared.upstream_key import upstream_key


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

"""Options of a load on a command line."""

import pytest

from llamaherd.failures import Misused
from llamaherd.load_options import read_options
from llamaherd_shared.model_options import LoadOptions


def test_options_are_read_as_in_the_configuration() -> None:
    named = {"context_tokens": 8192, "slots": None, "gpu_layers": "all", "flash_attention": "off"}

    assert read_options(named, ["kv_offload=true", "cache_type_k=q8_0", "batch_tokens=64"]) == LoadOptions(
        context_tokens=8192,
        gpu_layers="all",
        flash_attention=False,
        kv_offload=True,
        cache_type_k="q8_0",
        batch_tokens=64,
    )
    assert read_options({"gpu_layers": "12", "flash_attention": "auto"}, []).said == {
        "gpu_layers": 12,
        "flash_attention": "auto",
    }


def test_nothing_is_asked_for_when_nothing_is_said() -> None:
    assert read_options({"slots": None}, []) == LoadOptions()


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("slots", "--option slots: write it as NAME=VALUE"),
        ("mmproj=a.gguf", "--option mmproj=a.gguf: a load has no 'mmproj'; it has context_tokens, slots"),
        ("slots=none", "slots: expected `int | null`, got `str`"),
        ("slots=0", "slots: expected `int` >= 1"),
    ],
)
def test_what_cannot_be_meant_is_told(option: str, sentence: str) -> None:
    with pytest.raises(Misused) as caught:
        read_options({}, [option])

    assert str(caught.value).startswith(sentence)

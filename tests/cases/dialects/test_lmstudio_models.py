"""LM Studio's lists of models, and the bodies of loading, unloading and downloading."""

import json
from typing import Any

import pytest

from llamaherd_gateway.dialects.dialect import Card, Herd, Loaded, PageRequest
from llamaherd_gateway.dialects.lmstudio import LMSTUDIO, PAGES
from llamaherd_gateway.dialects.lmstudio.catalog import params_string
from llamaherd_gateway.dialects.lmstudio.downloads import (
    Download,
    read_download,
    render_download,
    render_download_status,
    unknown_job,
)
from llamaherd_gateway.dialects.lmstudio.residency import (
    find_instances,
    read_load,
    read_unload,
    render_loaded,
    render_unloaded,
)
from llamaherd_gateway.problems import BadRequest, UnknownModel, problem_of
from llamaherd_shared.model_options import LoadOptions

CONFIG = {"context_length": 4096, "parallel": 4, "eval_batch_size": 512, "flash_attention": False}
LOADED = {"context_tokens": 8192, "batch_tokens": 512, "flash_attention": False, "threads": 2}
READY = Loaded(name="n/acme/llama/0", node="n", state="ready", context_tokens=4096, slots=4, options=LOADED)
SECOND = Loaded(name="o/acme/llama/0", node="o", state="ready", context_tokens=8192, slots=2)
LLAMA = Card(
    name="acme/llama",
    model="acme/llama",
    title="Llama",
    architecture="llama",
    parameters=7_240_000_000,
    size_bytes=4_000_000_000,
    context_tokens=32768,
    quantization="Q4_K_M",
    capabilities=frozenset({"completion", "tools", "vision", "thinking"}),
    loaded=(READY,),
)
ALIAS = Card(name="gpt", model="acme/llama", architecture="llama", loaded=(READY,))
WORDS = Card(name="words", model="words", architecture="bert", capabilities=frozenset({"embedding"}), loaded=())
HERD = Herd(cards=(LLAMA, ALIAS, WORDS), now_ns=0, version="1")
MINUTE_NS = 60 * 10**9


def page(path: str, herd: Herd = HERD, **parameters: str) -> dict[str, Any]:
    found = next(page for page in PAGES if page.path == path)
    content: dict[str, Any] = json.loads(found.answer(PageRequest(method="GET", parameters=parameters), herd).body)
    return content


def refusal(call: Any, *arguments: Any) -> dict[str, Any]:
    with pytest.raises(BadRequest) as caught:
        call(*arguments)
    error: dict[str, Any] = json.loads(LMSTUDIO.render_problem(problem_of(caught.value), ""))["error"]
    return error


def test_v1_describes_a_model_and_what_is_in_memory() -> None:
    llama, alias, words = page("/api/v1/models")["models"]
    assert llama == {
        "type": "llm",
        "publisher": "acme",
        "key": "acme/llama",
        "display_name": "Llama",
        "architecture": "llama",
        "quantization": {"name": "Q4_K_M", "bits_per_weight": 4},
        "size_bytes": 4_000_000_000,
        "params_string": "7.2B",
        "loaded_instances": [{"id": "acme/llama", "config": CONFIG}],
        "max_context_length": 32768,
        "format": "gguf",
        "capabilities": {
            "vision": True,
            "trained_for_tool_use": True,
            "reasoning": {"allowed_options": ["off", "on"], "default": "on"},
        },
        "description": None,
    }
    assert (alias["key"], alias["loaded_instances"][0]["id"]) == ("gpt", "acme/llama")
    assert words["type"] == "embedding"
    assert not {"architecture", "capabilities"} & words.keys()
    assert words["quantization"] is None


def test_v0_describes_a_model_with_one_state() -> None:
    llama, _, words = page("/api/v0/models")["data"]
    assert llama == {
        "id": "acme/llama",
        "object": "model",
        "type": "vlm",
        "publisher": "acme",
        "arch": "llama",
        "compatibility_type": "gguf",
        "quantization": "Q4_K_M",
        "state": "loaded",
        "max_context_length": 32768,
        "loaded_context_length": 4096,
        "capabilities": ["tool_use"],
    }
    assert (words["type"], words["state"]) == ("embeddings", "not-loaded")
    assert page("/api/v0/models/{id*}", id="acme/llama") == llama


def test_a_model_that_does_not_exist_is_not_shown() -> None:
    with pytest.raises(UnknownModel, match="lama"):
        page("/api/v0/models/{id*}", id="lama")


def test_an_instance_that_is_not_in_memory_is_not_listed() -> None:
    loading = Card(name="m", model="m", loaded=(Loaded(name="n/m/0", node="n", state="loading"),))
    herd = Herd(cards=(loading,), now_ns=0, version="1")
    assert page("/api/v1/models", herd)["models"][0]["loaded_instances"] == []
    assert page("/api/v0/models", herd)["data"][0]["state"] == "not-loaded"


@pytest.mark.parametrize(
    ("name", "bits"), [("IQ2_XS", 2), ("BF16", 16), ("MXFP4", 4), ("Q8_0", 8), ("TQ1_0", 1), ("weird", None)]
)
def test_bits_per_weight_are_the_nominal_ones(name: str, bits: int | None) -> None:
    herd = Herd(cards=(Card(name="m", model="m", quantization=name),), now_ns=0, version="1")
    assert page("/api/v1/models", herd)["models"][0]["quantization"] == {"name": name, "bits_per_weight": bits}


def test_parameters_are_written_as_people_do() -> None:
    counts = (0, 900, 1_600_000, 137_000_000, 1_540_000_000, 7_000_000_000, 671_026_419_200)
    assert [params_string(count) for count in counts] == [None, "900", "1.6M", "137M", "1.5B", "7B", "671B"]


def test_a_load_says_what_it_wants_and_gets_what_it_got() -> None:
    body = b'{"model": "gpt", "context_length": 8192, "flash_attention": false, "echo_load_config": true}'
    request = read_load(body)
    assert request.model == "gpt"
    assert request.options == LoadOptions(context_tokens=8192, flash_attention=False)
    told = json.loads(render_loaded(ALIAS, READY, request, load_ns=1_500_000_000))
    assert told == {
        "type": "llm",
        "instance_id": "acme/llama",
        "load_time_seconds": 1.5,
        "status": "loaded",
        "load_config": CONFIG,
    }
    assert "load_config" not in json.loads(render_loaded(WORDS, READY, read_load(b'{"model":"words"}'), load_ns=0))


def test_every_option_of_a_load_has_a_name_of_ours() -> None:
    body = b"""{"model": "m", "context_length": 8, "eval_batch_size": 4, "flash_attention": true, "num_experts": 2,
        "offload_kv_cache_to_gpu": false, "parallel": 3}"""

    assert read_load(body).options == LoadOptions(
        context_tokens=8, batch_tokens=4, flash_attention=True, experts=2, kv_offload=False, slots=3
    )
    assert read_load(b'{"model": "m"}').options is None


def test_a_load_that_cannot_be_meant_is_refused() -> None:
    assert refusal(read_load, b"{}")["param"] == "model"
    assert refusal(read_load, b'{"model":"m","gpu":"max"}')["code"] == "unrecognized_keys"
    assert "`context_length`" in refusal(read_load, b'{"model":"m","context_length":0}')["message"]
    assert refusal(read_unload, b"{}")["code"] == "missing_required_parameter"
    assert refusal(read_unload, b'{"instance_id":""}')["param"] == "instance_id"


def test_an_instance_is_unloaded_by_the_name_it_was_listed_with() -> None:
    assert read_unload(b'{"instance_id": "acme/llama"}') == "acme/llama"
    for wanted in ("acme/llama", "gpt", "n/acme/llama/0"):
        assert find_instances(HERD, wanted) == ("acme/llama", (READY,))
    assert json.loads(render_unloaded("acme/llama")) == {"instance_id": "acme/llama"}
    error = refusal(find_instances, HERD, "words")
    assert error["type"] == "model_not_found"
    assert "acme/llama" in error["message"]


def test_several_instances_have_names_of_their_own() -> None:
    both = Card(name="acme/llama", model="acme/llama", loaded=(READY, SECOND))
    herd = Herd(cards=(both,), now_ns=0, version="1")
    listed = [instance["id"] for instance in page("/api/v1/models", herd)["models"][0]["loaded_instances"]]
    assert listed == ["n/acme/llama/0", "o/acme/llama/0"]
    assert find_instances(herd, listed[1])[1] == (SECOND,)
    assert find_instances(herd, "acme/llama")[1] == (READY, SECOND)


def test_a_download_is_told_of_by_its_status() -> None:
    assert read_download(b'{"model":"acme/llama","quantization":"Q4_K_M"}').quantization == "Q4_K_M"
    assert refusal(read_download, b'{"quantization":"Q4_K_M"}')["param"] == "model"
    running = Download(
        job_id="job_1",
        status="downloading",
        total_bytes=1000,
        downloaded_bytes=400,
        bytes_per_s=10.0,
        started_ns=1_759_505_603_496_000_000,
    )
    begun = {
        "job_id": "job_1",
        "status": "downloading",
        "total_size_bytes": 1000,
        "started_at": "2025-10-03T15:33:23.496Z",
    }
    assert json.loads(render_download(running)) == begun
    assert json.loads(render_download_status(running, now_ns=running.started_ns)) == {
        **begun,
        "downloaded_bytes": 400,
        "bytes_per_second": 10.0,
        "estimated_completion": "2025-10-03T15:34:23.496Z",
    }
    done = Download(job_id="job_1", status="completed", started_ns=0, completed_ns=MINUTE_NS)
    assert json.loads(render_download_status(done, now_ns=0))["completed_at"] == "1970-01-01T00:01:00.000Z"
    there = Download(job_id="job_1", status="already_downloaded")
    assert json.loads(render_download(there)) == {"status": "already_downloaded"}
    assert json.loads(render_download_status(there, now_ns=0))["status"] == "completed"


def test_a_stalled_download_foretells_nothing_absurd() -> None:
    stalled = Download(job_id="j", status="downloading", total_bytes=10**15, bytes_per_s=1e-300)
    assert json.loads(render_download_status(stalled, now_ns=0))["estimated_completion"].startswith("1971")
    still = Download(job_id="j", status="downloading", total_bytes=10**15, bytes_per_s=0.0)
    assert "estimated_completion" not in json.loads(render_download_status(still, now_ns=0))


def test_an_unknown_download_is_not_found() -> None:
    error = json.loads(LMSTUDIO.render_problem(problem_of(unknown_job("job_2")), ""))["error"]
    assert (error["type"], "job_2" in error["message"]) == ("job_not_found", True)

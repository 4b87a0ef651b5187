"""Images and sounds in every dialect, to models that see and hear, and to one that does neither.

The models are random, and so is what they say: what counts is that it is an answer, and that it was paid for.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest

from harness.herd import Herd
from harness.media import base64, data_url, png, wav
from harness.random_gguf import write_random_gguf
from harness.random_projector import IMAGE_TOKENS, SOUND_TOKENS, write_random_projector

LOOK = "Look at this."
SHORT = 6


@pytest.fixture(scope="module", autouse=True)
def models(herd: Herd) -> Iterator[None]:
    """`seer` sees, `listener` hears."""
    paths = [
        write_random_gguf(herd.models_dir / "seer.gguf", seed=2),
        write_random_projector(herd.models_dir / "mmproj-seer-F16.gguf"),
        write_random_gguf(herd.models_dir / "listener.gguf", seed=3),
        write_random_projector(herd.models_dir / "listener-mmproj.gguf", sees=False, hears=True),
    ]
    senses = {"seer": "vision", "listener": "audio"}
    herd.eventually(
        lambda: senses.items() <= {(e["model"], (e["capabilities"] or [""])[-1]) for e in herd.fleet()["models"]},
        within_s=15,
        what="the models are found with their projectors",
    )
    yield
    for path in paths:
        path.unlink()
    for model in senses:
        herd.cli("unload", model)


@pytest.fixture(scope="module")
def client(herd: Herd) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{herd.gateway_url}/v1", api_key="any", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def claude(herd: Herd) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=herd.gateway_url, api_key="any", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def llama(herd: Herd) -> Iterator[ollama.Client]:
    with ollama.Client(host=herd.gateway_url, timeout=60) as client:
        yield client


def show(text: str, *images: bytes) -> Any:
    """Messages of OpenAI's chat."""
    parts = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
    return [{"role": "user", "content": [{"type": "text", "text": text}, *parts]}]


def test_an_image_in_openais_chat_is_counted_and_answered(client: openai.OpenAI) -> None:
    def prompt_tokens(*images: bytes) -> int:
        answer = client.chat.completions.create(model="seer", messages=show(LOOK, *images), max_tokens=SHORT)
        assert answer.choices[0].message.role == "assistant"
        assert answer.usage is not None
        assert 0 < answer.usage.completion_tokens <= SHORT
        return answer.usage.prompt_tokens

    none, one, two = prompt_tokens(), prompt_tokens(png(10)), prompt_tokens(png(10), png(200))

    assert one - none >= IMAGE_TOKENS
    assert two - one >= IMAGE_TOKENS


def test_an_image_in_openais_chat_is_answered_as_a_stream(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="seer",
            messages=show(LOOK, png()),
            max_tokens=SHORT,
            stream=True,
            stream_options={"include_usage": True},
        )
    )

    usage = chunks[-1].usage
    assert usage is not None
    assert usage.prompt_tokens > IMAGE_TOKENS
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] in ("stop", "length")


def test_an_image_in_openais_responses_is_counted_and_answered(client: openai.OpenAI) -> None:
    def input_tokens(*parts: Any) -> int:
        content = [{"type": "input_text", "text": LOOK}, *parts]
        asked: Any = [{"role": "user", "content": content}]
        answer = client.responses.create(model="seer", input=asked, max_output_tokens=16)
        assert answer.usage is not None
        return answer.usage.input_tokens

    image = {"type": "input_image", "image_url": data_url(png()), "detail": "auto"}

    assert input_tokens(image) - input_tokens() >= IMAGE_TOKENS


def test_an_image_that_cannot_be_read_is_the_clients_mistake(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="image"):
        client.chat.completions.create(model="seer", messages=show(LOOK, b"no image"), max_tokens=SHORT)


def test_an_image_in_anthropics_messages_is_counted_and_answered(claude: anthropic.Anthropic) -> None:
    def messages(*images: bytes) -> Any:
        sources = [{"type": "base64", "media_type": "image/png", "data": base64(image)} for image in images]
        parts = [{"type": "image", "source": source} for source in sources]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": LOOK}]}]

    def input_tokens(*images: bytes) -> int:
        answer = claude.messages.create(model="seer", max_tokens=SHORT, messages=messages(*images))
        assert answer.role == "assistant"
        return answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)

    assert input_tokens(png()) - input_tokens() >= IMAGE_TOKENS


def test_images_in_ollamas_chat_and_generate_are_counted_and_answered(llama: ollama.Client) -> None:
    few = {"num_predict": SHORT}

    def chatted(*images: bytes) -> int:
        said = {"role": "user", "content": LOOK, "images": [base64(image) for image in images]}
        answer = llama.chat("seer", [said], options=few)
        assert (answer.done, answer.message.role) == (True, "assistant")
        return answer.prompt_eval_count or 0

    def generated(*images: bytes) -> int:
        return llama.generate("seer", LOOK, images=[*images], options=few).prompt_eval_count or 0

    assert chatted(png()) - chatted() >= IMAGE_TOKENS
    assert generated(png()) - generated() >= IMAGE_TOKENS


def test_an_image_in_lm_studios_chat_is_counted_and_answered(herd: Herd) -> None:
    def input_tokens(*parts: dict[str, str]) -> int:
        asked = [{"type": "text", "content": LOOK}, *parts]
        body = {"model": "seer", "input": asked, "max_output_tokens": SHORT}
        answer = httpx.post(f"{herd.gateway_url}/api/v1/chat", json=body, timeout=60).raise_for_status().json()
        assert answer["model_instance_id"] == "seer"
        tokens: int = answer["stats"]["input_tokens"]
        return tokens

    assert input_tokens({"type": "image", "data_url": data_url(png())}) - input_tokens() >= IMAGE_TOKENS


def test_a_sound_is_transcribed(client: openai.OpenAI) -> None:
    def transcribe(sound: bytes) -> Any:
        asked: Any = {"max_tokens": str(SHORT)}
        return client.audio.transcriptions.create(model="listener", file=("speech.wav", sound), extra_body=asked)

    short, long = transcribe(wav(0.5)), transcribe(wav(40))

    assert isinstance(short.text, str)
    assert short.usage.input_tokens > SOUND_TOKENS
    assert long.usage.input_tokens - short.usage.input_tokens >= SOUND_TOKENS


def test_a_transcript_comes_as_text_and_as_a_stream(client: openai.OpenAI) -> None:
    asked: Any = {"max_tokens": str(SHORT)}
    file = ("speech.wav", wav())

    text = client.audio.transcriptions.create(model="listener", file=file, response_format="text", extra_body=asked)
    events = list(client.audio.transcriptions.create(model="listener", file=file, stream=True, extra_body=asked))

    assert isinstance(text, str)
    assert not text.startswith("{")
    assert {event.type for event in events[:-1]} <= {"transcript.text.delta"}
    assert events[-1].type == "transcript.text.done"


def test_a_sound_in_openais_and_ollamas_chat_is_counted_and_answered(
    client: openai.OpenAI, llama: ollama.Client
) -> None:
    def chatted(*sounds: bytes) -> int:
        parts = [{"type": "input_audio", "input_audio": {"data": base64(sound), "format": "wav"}} for sound in sounds]
        messages: Any = [{"role": "user", "content": [{"type": "text", "text": "Listen."}, *parts]}]
        answer = client.chat.completions.create(model="listener", messages=messages, max_tokens=SHORT)
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    said = {"role": "user", "content": "Listen.", "images": [base64(wav())]}
    answer = llama.chat("listener", [said], options={"num_predict": SHORT})

    assert chatted(wav()) - chatted() >= SOUND_TOKENS
    assert (answer.prompt_eval_count or 0) > SOUND_TOKENS


def test_every_list_tells_who_sees_and_who_hears(herd: Herd, client: openai.OpenAI, llama: ollama.Client) -> None:
    def get(path: str) -> Any:
        return httpx.get(herd.gateway_url + path, timeout=10).raise_for_status().json()

    inputs = {each["id"]: each["architecture"]["input_modalities"] for each in get("/v1/models")["data"]}
    vision = {each["key"]: each["capabilities"]["vision"] for each in get("/api/v1/models")["models"]}
    kinds = {each["id"]: each["type"] for each in get("/api/v0/models")["data"]}
    own = json.loads(herd.cli("models", "--json").stdout)

    assert (inputs["seer"], inputs["listener"], inputs["cria"]) == (["text", "image"], ["text", "audio"], ["text"])
    assert (vision["seer"], vision["listener"], vision["cria"]) == (True, False, False)
    assert (kinds["seer"], kinds["cria"]) == ("vlm", "llm")
    assert llama.show("seer").capabilities == ["completion", "vision"]
    assert llama.show("listener").capabilities == ["completion", "audio"]
    assert {each["model"]: each["capabilities"] for each in own}["seer"] == ["completion", "vision"]
    assert not {name for name in inputs if "mmproj" in name}
    assert "completion, audio" in herd.cli("models").stdout.replace("\n", " ")


def test_what_an_image_and_a_sound_took_is_in_the_facts(herd: Herd, client: openai.OpenAI) -> None:
    client.chat.completions.create(model="seer", messages=show(LOOK, png(77)), max_tokens=SHORT)
    client.audio.transcriptions.create(model="listener", file=("a.wav", wav(0.7)), extra_body={"max_tokens": "3"})

    def told(route: str, model: str) -> dict[str, Any]:
        rows = httpx.get(f"{herd.ui_url}/api/v1/requests", params={"model": model}, timeout=5).json()["requests"]
        return next(row for row in rows if row["route"] == route and row["outcome"] == "ok")

    seen = herd.eventually(lambda: told("/v1/chat/completions", "seer"), within_s=10, what="the fact of the chat")
    heard = herd.eventually(
        lambda: told("/v1/audio/transcriptions", "listener"), within_s=10, what="the fact of the transcription"
    )
    assert seen["prompt_tokens"] > IMAGE_TOKENS
    assert heard["prompt_tokens"] > SOUND_TOKENS


IMAGE_TO_CRIA: dict[str, Callable[[], tuple[str, dict[str, Any]]]] = {
    "openai": lambda: ("/v1/chat/completions", {"messages": show(LOOK, png())}),
    "responses": lambda: (
        "/v1/responses",
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": data_url(png())}]}]},
    ),
    "anthropic": lambda: (
        "/v1/messages",
        {
            "max_tokens": 3,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "image",
                            "source": {"type": "base64", "media_type": "image/png", "data": base64(png())},
                        }
                    ],
                }
            ],
        },
    ),
    "ollama": lambda: ("/api/chat", {"messages": [{"role": "user", "content": LOOK, "images": [base64(png())]}]}),
    "ollama generate": lambda: ("/api/generate", {"prompt": LOOK, "images": [base64(png())]}),
    "lmstudio": lambda: ("/api/v1/chat", {"input": [{"type": "image", "data_url": data_url(png())}]}),
    "sound": lambda: (
        "/v1/chat/completions",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "input_audio", "input_audio": {"data": base64(wav()), "format": "wav"}}],
                }
            ]
        },
    ),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("dialect", IMAGE_TO_CRIA)
def test_what_a_model_can_neither_see_nor_hear_is_refused_in_one_sentence(
    herd: Herd, dialect: str, stream: bool
) -> None:
    path, body = IMAGE_TO_CRIA[dialect]()

    answer = httpx.post(herd.gateway_url + path, json={"model": "cria", "stream": stream, **body}, timeout=60)

    error = answer.json()["error"]
    sentence = error if isinstance(error, str) else error["message"]
    assert (answer.status_code, sentence) == (
        400,
        f"cria is not made for {'audio' if dialect == 'sound' else 'images'}",
    )


def test_a_projector_that_llama_server_does_not_know_is_told_with_its_reason(herd: Herd) -> None:
    paths = [
        write_random_gguf(herd.models_dir / "oracle.gguf", seed=4),
        write_random_projector(herd.models_dir / "mmproj-oracle.gguf", eyes="third_eye"),
    ]
    herd.eventually(
        lambda: next(each for each in herd.fleet()["models"] if each["model"] == "oracle")["projector"],
        within_s=15,
        what="the model is found with its projector",
    )
    try:
        loaded = herd.cli("load", "oracle")
    finally:
        for path in paths:
            path.unlink()
        herd.cli("unload", "oracle")

    assert loaded.returncode != 0
    assert "unknown projector type: third_eye" in " ".join(loaded.stderr.split())


def test_a_sound_for_a_model_that_hears_nothing_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="seer is not made for audio"):
        client.audio.transcriptions.create(model="seer", file=("a.wav", wav()))

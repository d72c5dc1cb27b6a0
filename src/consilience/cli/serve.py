"""`consilience serve`: a thin door to the room of the same name."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shlex
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from consilience.cli.given import given, refuse
from consilience.cli.options import pair_of
from consilience.errors import BackendError, ConfigError
from consilience.search.shape import CHUNK, SUCCESSORS, WIDTH

DEFAULT_KEY_ENV = "CONSILIENCE_API_KEY"
GUIDE, CALLERS, LIMITS = "With a guide", "Who may call, and where", "Limits"  # panels of the help
OF_A_GUIDE = ("method", "width", "successors", "chunk")


def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A local Hugging Face folder or a hub name.")],
    guide: Annotated[
        str | None,
        typer.Option(rich_help_panel=GUIDE, metavar="TUNED:UNTUNED", help="Search replies, guided by a small pair."),
    ] = None,
    method: Annotated[str, typer.Option(rich_help_panel=GUIDE, help="cbs | best-of-n | eft | sample.")] = "cbs",
    width: Annotated[int, typer.Option(rich_help_panel=GUIDE, help="W, hypotheses kept.")] = WIDTH,
    successors: Annotated[int, typer.Option(rich_help_panel=GUIDE, help="K, continuations of each.")] = SUCCESSORS,
    chunk: Annotated[
        int, typer.Option(rich_help_panel=GUIDE, min=0, help="L, tokens at a time; 0 is the whole reply.")
    ] = CHUNK,
    host: Annotated[
        str, typer.Option(rich_help_panel=CALLERS, help="Where to listen. Others reach 0.0.0.0, too: set an API key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(rich_help_panel=CALLERS, min=0, max=65535, help="0: any that is free.")] = 8000,
    api_key_env: Annotated[
        str,
        typer.Option(
            rich_help_panel=CALLERS,
            metavar="NAME",
            help="The environment variable that holds the API key, if there is to be one.",
        ),
    ] = DEFAULT_KEY_ENV,
    served_model_name: Annotated[str, typer.Option(help="The name that clients use; else MODEL as given.")] = "",
    max_model_len: Annotated[
        int | None,
        typer.Option(rich_help_panel=LIMITS, help="Tokens of prompt and reply together; else the model's positions."),
    ] = None,
    max_num_seqs: Annotated[
        int, typer.Option(rich_help_panel=LIMITS, help="Replies that are written side by side.")
    ] = 64,
    max_waiting: Annotated[
        int, typer.Option(rich_help_panel=LIMITS, help="Requests that may wait; more are answered with 429.")
    ] = 1024,
    request_timeout: Annotated[
        float, typer.Option(rich_help_panel=LIMITS, metavar="SECONDS", help="Of one request, waiting included.")
    ] = 600.0,
    grace: Annotated[
        float,
        typer.Option(rich_help_panel=LIMITS, metavar="SECONDS", help="For requests in progress when told to stop."),
    ] = 30.0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto: the checkpoint's own.")] = "float32",
    generation_config: Annotated[
        str, typer.Option(help="auto: temperature, top_p ... of the model where a request has none. none: OpenAI's.")
    ] = "auto",
    allowed_hosts: Annotated[
        list[str],
        typer.Option(
            rich_help_panel=CALLERS,
            metavar="NAME",
            help="A host name beside localhost and IP addresses; * for any. Repeat it.",
        ),
    ] = [],  # noqa: B006 (typer reads the default, nobody changes it)
    allowed_origins: Annotated[
        list[str],
        typer.Option(
            rich_help_panel=CALLERS, metavar="ORIGIN", help="Web pages that may call (https://app.example); * for any."
        ),
    ] = [],  # noqa: B006
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the Python code that comes with a checkpoint.")
    ] = False,
    access_log: Annotated[bool, typer.Option(help="A line on standard error for every request.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Start-up and log lines as JSON objects.")] = False,
) -> None:
    """Serve a model to any client of OpenAI's API: chat completions, completions, streams."""
    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise BackendError(f"serve needs {' and '.join(missing)}. Install it: pip install 'consilience[serve]'.")
    if guide is None:
        refuse(given(context, OF_A_GUIDE), "of a search. Give --guide TUNED:UNTUNED.")
    if not 0 <= grace < math.inf:
        raise ConfigError(f"--grace is {grace:g}; expected seconds, 0 or more.")
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", api_key_env):  # perhaps the key itself: it is not repeated
        raise ConfigError("--api-key-env takes the name of an environment variable that holds the key, not the key.")
    key = os.environ.get(api_key_env, "")
    if not key and api_key_env != DEFAULT_KEY_ENV:
        raise ConfigError(f"the environment variable {api_key_env} of --api-key-env holds no key. Set it.")
    if key and not (key.isascii() and key.isprintable() and key.strip() == key):
        raise ConfigError(f"the key in {api_key_env} holds blanks at an end, or other than printable ASCII characters.")

    from consilience.serve.guard import is_loopback
    from consilience.serve.server import Server, bind, run

    bound = bind(host, port)
    from consilience.cli.progress import quiet_libraries
    from consilience.serve.app import make_app
    from consilience.serve.start import ServeSettings, prepare

    settings = ServeSettings(
        model=model,
        served_model_name=served_model_name,
        dtype=dtype,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_waiting=max_waiting,
        request_timeout_s=request_timeout,
        generation_config=generation_config,
        trust_remote_code=trust_remote_code,
        guide=pair_of(guide),
        method=method,
        width=width,
        successors=successors,
        chunk=chunk or None,
    )
    quiet_libraries()
    ready = prepare(settings)
    notes = [*ready.notes]
    if not key and not is_loopback(host):
        notes.append(f"anyone who reaches {host} may use this server: set {api_key_env} to ask for a key")
    app = make_app(ready.served, ready.engine, ready.metrics, key=key, hosts=allowed_hosts, origins=allowed_origins)
    server = Server(app, ready.engine, grace_s=grace, access_log=access_log, log_config=_logging(as_json))
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{bound.getsockname()[1]}"
    about = {
        "url": f"{url}/v1",
        "model": ready.served.name,
        "max_model_len": ready.served.context,
        "api_key_env": api_key_env if key else None,
    } | dict(ready.served.about)

    def say() -> None:
        print(json.dumps(about | {"notes": notes}) if as_json else _opening(about, notes, ready.served), flush=True)

    run(server, bound, on_ready=say)


def _opening(about: dict[str, Any], notes: list[str], served: Any) -> str:
    chat = bool(served.tokenizer.chat_template)
    path = "chat/completions" if chat else "completions"
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]} if chat else {"prompt": "Hello"}
    key = f' -H "Authorization: Bearer ${about["api_key_env"]}"' if about["api_key_env"] else ""
    # Without a limit a chat may fill the context, which takes a while where every reply is searched for.
    body = shlex.quote(json.dumps({"model": about["model"]} | asked | {"max_tokens": 64}))
    lines = [
        f"model    {about['model']} ({about['max_model_len']} tokens of prompt and reply)",
        *([f"guide    {_guided(served.about)}"] if served.about else []),
        *(f"note     {note}" for note in notes),
        f"listens  {about['url']}  (OpenAI's API; stop with Ctrl-C)",
        f"try      curl {about['url']}/{path}{key} -H 'Content-Type: application/json' -d {body}",
    ]
    return "\n".join(lines)


def _guided(about: Mapping[str, Any]) -> str:
    shape = ", ".join(f"{name} {about[name] or 'whole reply'}" for name in ("width", "successors", "chunk"))
    return f"{about['guide']} ({about['method']}: {shape})"


def _logging(as_json: bool) -> dict[str, Any]:
    """Everything on standard error: uvicorn's own lines only where something is wrong, and one for every request."""
    plain = {"format": "%(asctime)s %(levelname)s %(message)s"}
    shape = {"()": "consilience.cli.serve.JsonLines"} if as_json else plain
    handler = {"class": "logging.StreamHandler", "stream": "ext://sys.stderr", "formatter": "line"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": shape},
        "handlers": {"stderr": handler},
        "loggers": {
            "uvicorn.error": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
            "uvicorn.access": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
            "consilience.serve": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        },
    }


class JsonLines(logging.Formatter):
    """One JSON object per log line."""

    def format(self, record: logging.LogRecord) -> str:
        told = {"time": self.formatTime(record), "level": record.levelname, "message": record.getMessage()}
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told)

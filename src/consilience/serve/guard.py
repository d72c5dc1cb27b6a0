"""Who may talk to the server: which hosts and web pages, with which key. Pure ASGI, for any application of ours.

A server on loopback is within reach of every web page that the same machine shows. A page of another origin can send it
requests (it may not read the answers), and one whose name was pointed at 127.0.0.1 after it was loaded (DNS rebinding)
can read them as well. The first gives itself away by its Origin header, the second by the name in its Host header: it
needs one of its own, never an IP address or `localhost`.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Refuse = Callable[[int, str, str], App]  # status, message, code -> an application that answers so

# FastAPI records requests for OpenTelemetry, and sends them away where the environment names a collector.
SILENT: Any = {"auto_configure": False, "tracing": False, "metrics": False, "logs": False}
PREFLIGHT = {"access-control-allow-methods": "GET, POST", "access-control-allow-headers": "authorization, content-type"}


class Guard:
    """Lets requests through to `app` that come under a known host name, from no foreign page, and with the key.

    `hosts` are names beside IP addresses, `localhost` and this machine's own name; `*` is any name, and so it is where
    a key is asked for, which a page does not have. `origins` are the pages that may call from a browser
    (`https://example.org`, or `*`). `open_paths` need no key.
    """

    def __init__(
        self,
        app: App,
        *,
        refuse: Refuse,
        hosts: Collection[str] = (),
        origins: Collection[str] = (),
        key: str = "",
        open_paths: Collection[str] = (),
    ) -> None:
        self.app, self.refuse, self.key, self.open_paths = app, refuse, key, open_paths
        self.hosts = {"localhost", socket.gethostname().lower(), *(host.lower() for host in hosts)}
        self.origins = {origin.rstrip("/") for origin in origins}
        self.any_host = bool(key) or "*" in hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        origin = headers.get("origin")
        answer = self._refusal(scope["path"], scope["method"], headers)
        if answer is None and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            answer = _allow
        await (answer or self.app)(scope, receive, _with_cors(send, origin) if self._known(origin) else send)

    def _refusal(self, path: str, method: str, headers: Mapping[str, str]) -> App | None:
        host = _name_of(headers.get("host", ""))
        if not (self.any_host or host in self.hosts or _is_address(host)):
            message = f"this server is not known as {host[:80]!r}; start it with --allowed-hosts {host[:80]} to be."
            return self.refuse(403, message, "unknown_host")
        origin = headers.get("origin")
        if origin is not None and not self._known(origin) and origin.partition("://")[2] != headers.get("host"):
            message = f"pages of {origin[:80]} may not call this server; start it with --allowed-origins to let them."
            return self.refuse(403, message, "unknown_origin")
        if self.key and method != "OPTIONS" and path not in self.open_paths:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.key.encode()):
                message = "Incorrect API key provided, or none: expected the header 'Authorization: Bearer KEY'."
                return self.refuse(401, message, "invalid_api_key")
        return None

    def _known(self, origin: str | None) -> bool:
        return origin is not None and ("*" in self.origins or origin in self.origins)


def is_loopback(host: str) -> bool:
    """Whether a server bound to `host` is within reach of this machine only."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _name_of(host: str) -> str:
    """A Host header without its port; an IPv6 address without its brackets."""
    address, bracket, port = host.removeprefix("[").partition("]")
    if bracket and port[:1] in ("", ":"):
        return address.lower()
    return host.partition(":")[0].lower()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _with_cors(send: Send, origin: str | None) -> Send:
    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            own = [(b"access-control-allow-origin", (origin or "").encode("latin-1")), (b"vary", b"origin")]
            message = {**message, "headers": [*message.get("headers", ()), *own]}
        await send(message)

    return sending


async def _allow(scope: Scope, receive: Receive, send: Send) -> None:
    """The answer to a browser's question whether a page may call: the page has been looked at already."""
    headers = [(name.encode(), value.encode()) for name, value in PREFLIGHT.items()]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})

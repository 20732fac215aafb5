"""Asking a server of this host over HTTP."""

import urllib.request

# Where a server that listens everywhere is reached.
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
# While this file exists, the server answers only requests with the token in it: its answers are not checked yet.
HELD = "/run/vllm-%s.held"


def base_url(host, port):
    """http:// address of a server that listens on `host` and `port`, without a last slash."""
    host = WILDCARDS.get(host, host)
    return "http://%s:%d" % ("[%s]" % host if ":" in host else host, port)


def pass_of(name):
    """Header that lets a question through to the server `name` while it is held back; none where it is not."""
    try:
        with open(HELD % name) as stream:
            return {"X-Kepler-Held": stream.read().strip()}
    except (IOError, OSError):
        return {}


def open_url(request, timeout):
    """The answer to an address or request, whatever proxy the environment names. timeout: seconds. Raises OSError."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout)

"""Whether a service is ready, loading or dead: `python -m common.rest.health URL`, for containers.

Exit code 0 when `/readyz` answers with success. Otherwise 1, and one word that an engine keeps with
its record of the check: `loading` when `/healthz` answers, `dead` when nothing does.
"""

import sys
import urllib.error
import urllib.request

TIMEOUT_S = 3.0
USAGE = "usage: python -m common.rest.health URL\n"


def state_of(url: str) -> str:
    """`ready`, `loading`, or `dead` with what was said instead of an answer."""
    # No proxy stands between a container and itself.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/readyz", timeout=TIMEOUT_S):
            return "ready"
    except (urllib.error.URLError, OSError):
        pass
    try:
        with opener.open(f"{url}/healthz", timeout=TIMEOUT_S):
            return "loading"
    except (urllib.error.URLError, OSError) as error:
        return f"dead: {error}"


def main() -> int:
    """The exit code."""
    if len(sys.argv) != 2:
        sys.stderr.write(USAGE)
        return 2
    state = state_of(sys.argv[1].rstrip("/"))
    sys.stdout.write(f"{state}\n")
    return 0 if state == "ready" else 1


if __name__ == "__main__":
    sys.exit(main())

"""Key-point control of generative engines: the thin package behind the numbered notebooks."""

import os
import sys
import warnings

__version__ = "0.1.0"


def _ask_this_machine_directly() -> None:
    """Take this machine's own servers from the proxies of the environment.

    Clients of HTTP would look for them behind a proxy, as most computing centres have one.
    """
    own, given = "localhost,127.0.0.1,0.0.0.0,::1", os.environ.get("no_proxy")
    given = given or os.environ.get("NO_PROXY", "")
    if given != "*" and own not in given:
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = f"{given},{own}".lstrip(",")


_ask_this_machine_directly()
# Where it can, jsonschema makes a grammar of IRIs, which takes a second and which nothing here has.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
# Whatever imports tqdm first, as Transformers does, looks for widgets that no report could show.
warnings.filterwarnings("ignore", message="IProgress not found")

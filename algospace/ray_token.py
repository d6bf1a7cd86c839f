"""A token for a Ray that a command starts for itself.

Ray listens on all interfaces, and whoever reaches it may run what he likes, as the user who started it.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
"""Ray's variables. Without the first, `ray.init` asks for a token wherever it starts a Ray."""


def own_ray_token() -> None:
    """Have the next Ray that this process starts ask for a token that only this user knows.

    Nothing changes where RAY_AUTH_MODE is set or a token is there already: RAY_AUTH_TOKEN, the file that
    RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token. Otherwise the token is made here and stays in the environment
    of this process and those that it starts; Ray itself would write the file, which processes that start together
    overwrite for each other, and which needs a home that can be written to.
    """
    if any(os.environ.get(name) for name in (MODE, TOKEN, TOKEN_PATH)):
        return
    try:
        if (Path.home() / ".ray" / "auth_token").is_file():
            return
    except RuntimeError:  # no home at all
        pass
    os.environ[TOKEN] = secrets.token_hex(32)

"""The two secrets of a cluster, laid where its services look for them."""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

from shoal_base.auth import make_secret_file, read_secret

from .config import NodeConfig

NODE_SECRET = "node.secret"
USER_TOKEN = "user.token"


def prepare_secrets(config: NodeConfig, cluster_dir: Path) -> Path:
    """The directory with node.secret and user.token. Raises OSError, ValueError or AuthenticationFailed naming the file.

    - A directory of secrets is used as it is; on a head, what is missing in it is made.
    - A token file serves for both: the node secret is derived from it, so whoever has it can also join as a node.
    - Otherwise a head makes new ones that go with the cluster.
    """
    if config.token_file:
        return _from_token(Path(config.token_file), cluster_dir, make=config.head and not config.standby)
    directory = Path(config.secrets_dir) if config.secrets_dir else cluster_dir
    if not config.head or config.standby:
        if not (directory / NODE_SECRET).exists():
            raise ValueError(f"{directory / NODE_SECRET} does not exist: copy it from the head (`shoal status -v` there names its place), or give --token-file")
        read_secret(directory / NODE_SECRET)
        return directory
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    make_secret_file(directory / NODE_SECRET)
    make_secret_file(directory / USER_TOKEN)
    return directory


def _from_token(path: Path, cluster_dir: Path, make: bool) -> Path:
    token = make_secret_file(path) if make else read_secret(path)
    _write(cluster_dir / USER_TOKEN, path.read_bytes())
    _write(cluster_dir / NODE_SECRET, hmac.new(token, b"shoal node secret", hashlib.sha256).hexdigest().encode())
    return cluster_dir


def _write(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)

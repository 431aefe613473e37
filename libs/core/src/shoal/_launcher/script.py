"""The shell text that runs on a machine. Pure: text in, text out."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from .config import DEFAULT_TEMP_DIR, Node

TOKEN = "token"
_VARIABLE = re.compile(r"(\$\$|\$[A-Za-z_][A-Za-z0-9_]*|\$\{[A-Za-z_][A-Za-z0-9_]*\})")
_SPECIAL = re.compile(r'[\\"`$]')


def environment(node: Node, shoal: str, head_address: str) -> dict[str, str]:
    """What a command on this node finds set, after the file's `env`."""
    return {
        "SHOAL_COMMAND": shoal, "SHOAL_TMPDIR": node.directory, "SHOAL_TOKEN_FILE": f"{node.directory}/{TOKEN}", "SHOAL_NODE_IP": node.host,
        "SHOAL_HEAD_ADDRESS": head_address,
    }  # fmt: skip


def with_environment(command: str, own: Mapping[str, str], env: Mapping[str, str]) -> str:
    """The command with the file's variables and then ours, and without an address that this machine's user may have set.

    >>> print(with_environment("echo $A", {"PATH": "$HOME/bin:$PATH"}, {"A": "it's"}))
    unset SHOAL_ADDRESS
    export PATH="$HOME/bin:$PATH"
    export A='it'"'"'s'
    echo $A
    """
    lines = [f"export {name}={expanded(value)}" for name, value in own.items()] + [f"export {name}={shlex.quote(value)}" for name, value in env.items()]
    return "\n".join(["unset SHOAL_ADDRESS", *lines, command])


def expanded(value: str) -> str:
    """Quoted for the shell, which puts in its variables for $NAME and ${NAME}, and does nothing else; $$ is a dollar.

    >>> print(expanded('$HOME/a "b" `c` $(d) $$5'))
    "$HOME/a \\"b\\" \\`c\\` \\$(d) \\$5"
    """
    parts = _VARIABLE.split(value)
    # Every second part is a variable, or $$.
    return '"' + "".join(("\\$" if part == "$$" else part) if index % 2 else _SPECIAL.sub(r"\\\g<0>", part) for index, part in enumerate(parts)) + '"'


def make_directory(directory: str) -> str:
    """The node's folder, its parents this user's own: whoever owns a parent could put another folder in its place."""
    cluster, temp = _parent(directory), _parent(_parent(directory))
    folders = " ".join(shlex.quote(folder) for folder in (temp, cluster, directory))
    return f"""umask 077
mkdir -p -- {shlex.quote(_parent(temp))} || exit 1
for d in {folders}; do mkdir -- "$d" 2>/dev/null; done
{_own(directory)}"""


def _own(directory: str) -> str:
    """Nothing is believed, and nothing removed, in folders that somebody else may have laid there."""
    cluster, temp = _parent(directory), _parent(_parent(directory))
    folders = " ".join(shlex.quote(folder) for folder in (temp, cluster, directory))
    return f"""for d in {folders}; do
  {{ [ -d "$d" ] && [ ! -L "$d" ] && [ -O "$d" ]; }} || {{ echo "$d cannot be made, or is not this user's own folder" >&2; exit 1; }}
  case "$(stat -c %A -- "$d")" in ?????w*|????????w*) echo "$d can be written by others" >&2; exit 1;; esac
done"""


def place_token(directory: str) -> str:
    """Writes what comes on standard input. In one step: a node that starts meanwhile reads the old one or the new one."""
    target = shlex.quote(f"{directory}/{TOKEN}")
    new = shlex.quote(f"{directory}/.{TOKEN}.new")
    return f"{make_directory(directory)}\ncat > {new} && chmod 600 {new} && mv -f -- {new} {target}"


def observe(directory: str, shoal: str) -> str:
    """Prints the nodes that run in the folder, as JSON. Without the folder nothing runs, whether or not Shoal is installed there."""
    return f"[ -d {shlex.quote(directory)} ] || {{ echo '[]'; exit 0; }}\n{_own(directory)}\n{shoal} local-nodes --temp-dir {shlex.quote(directory)}"


def ask_head(directory: str, shoal: str) -> str:
    """Prints the cluster's status as the head sees it, as JSON."""
    return f"{shoal} status --json --temp-dir {shlex.quote(directory)}"


def stop(directory: str, shoal: str) -> str:
    """Ends what runs in the folder, and removes it, and the cluster's when it was the last."""
    quoted, cluster, temp = shlex.quote(directory), shlex.quote(_parent(directory)), _parent(_parent(directory))
    # The default folder goes with its last cluster; one that the user named stays.
    last = f" && rmdir -- {shlex.quote(temp)} 2>/dev/null" if temp.startswith(DEFAULT_TEMP_DIR) else ""
    return f"""[ -d {quoted} ] || exit 0
{_own(directory)}
if ls {quoted} | grep -q '^n-'; then {shoal} stop --temp-dir {quoted} || exit 1; fi
rm -rf -- {quoted}
rmdir -- {cluster} 2>/dev/null{last}
exit 0"""


def unpack(target: str) -> str:
    """Unpacks a tar from standard input; its names are below the target's parent."""
    return f"mkdir -p -- {home(_parent(target))} && tar -xf - -C {home(_parent(target))}"


def home(path: str) -> str:
    """Quoted for the shell; `~/` stays the home over there.

    >>> home("~/my app"), home("/opt/x")
    ('"$HOME"/\\'my app\\'', '/opt/x')
    """
    if path == "~":
        return '"$HOME"'
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)


def _parent(path: str) -> str:
    return path.rstrip("/").rpartition("/")[0] or "/"

"""The users of the managed Redis: one per role, each with the commands and keys that its role needs and no others.

`docs/hot-state.md` shows the rules of the workloads for external servers; a test keeps both equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from sheetanchor.errors import BadSettings
from sheetanchor.runtime.settings import REDIS_USERS

_CONNECT: Final = "-@all +auth +hello +ping +quit +reset +client|setname +client|setinfo"
"""Commands that a client sends when it connects, and no more: no role tracks keys or uses another database."""

_COMMON: Final = f"{_CONNECT} +info +time +role"

_REBUILD: Final = (
    "~ob:* ~book:* ~tr:* ~feat:* ~anchor:* ~reanchor:* ~receipts:* %R~sbe:* %R~lines:* "
    "+fcall +fcall_ro +type +exists +get +set +del +expire +persist +rename "
    "+hset +hdel +hget +hmget +hgetall +smembers +xadd +xread +xrange +xrevrange +xinfo|stream"
)

ROLES: Final[Mapping[str, str]] = {
    "ingest": f"{_COMMON} ~sbe:* ~lines:* ~gaps:* +xadd +xtrim +sadd +pexpire +memory|usage +xinfo|stream",
    # It has the rights of a re-anchor too, since it runs one itself when the operator does not.
    "process": f"{_COMMON} {_REBUILD} ~gaps:* +hexists",
    "infer": (
        f"{_COMMON} %R~ob:* %R~tr:* %R~feat:* %R~anchor:* %R~reanchor:* ~pred:* ~preds:* "
        "+fcall +fcall_ro +type +exists +del +expire +hset +hget +hgetall +xadd +xtrim +xrange +xrevrange"
    ),
    "reanchor": f"{_COMMON} {_REBUILD}",
}
"""Permissions of each workload on a server."""

_SERVER: Final[Mapping[str, str]] = {
    **ROLES,
    "replica": "-@all +psync +replconf +ping",
    # As the documentation of Sentinel lists them.
    "sentinel": (
        "-@all +multi +exec +ping +role +info +publish +subscribe +replicaof +slaveof +failover +config|rewrite "
        "+client|setname +client|kill +script|kill +hello +auth allchannels"
    ),
}

NODE: Final = "node"
"""The process that runs a server; its password is random, new at each start, and never leaves the process."""

_NODE_RULES: Final = (
    f"{_CONNECT} +info +role +function|list +function|load +function|delete +function|kill +script|kill "
    "+client|pause +client|unpause"
)
"""Only this user may load functions: a function runs with the rights of every user that calls it."""

# A Sentinel has few of a server's commands, and does not start with a rule about an unknown one.
_ASK_SENTINEL: Final = "-@all +@connection -@admin +sentinel|master +sentinel|get-master-addr-by-name"
_SENTINEL: Final[Mapping[str, str]] = {
    **dict.fromkeys(ROLES, _ASK_SENTINEL),
    "sentinel": "-@all +@connection +sentinel +publish +subscribe +psubscribe +info +role +hello +auth allchannels",
}


def read_passwords(folder: Path) -> dict[str, str]:
    """Read one password per user from files of the users' names.

    Raises:
        BadSettings: A file is missing or empty; the text names it and never shows a password.
    """
    passwords = {}
    for user in REDIS_USERS:
        path = folder / user
        try:
            passwords[user] = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise BadSettings(f"password_dir: cannot read {str(path)!r}: {type(error).__name__}") from error
        if not passwords[user] or len(passwords[user].split()) != 1:
            raise BadSettings(f"password_dir: expected a password without spaces in {str(path)!r}")
    return passwords


def _lines(users: Mapping[str, str], passwords: Mapping[str, str]) -> list[str]:
    lines = ["user default reset off"]
    for user, rules in users.items():
        digest = hashlib.sha256(passwords[user].encode()).hexdigest()
        lines.append(f"user {user} reset on #{digest} {rules}")
    return lines


def server_users(passwords: Mapping[str, str]) -> list[str]:
    """Give the ACL lines of a server.

    Args:
        passwords: By user, that of `node` among them.
    """
    return _lines({**_SERVER, NODE: _NODE_RULES}, passwords)


def sentinel_users(passwords: Mapping[str, str]) -> list[str]:
    """Give the ACL lines of a Sentinel.

    Args:
        passwords: By user.
    """
    return _lines(_SENTINEL, passwords)

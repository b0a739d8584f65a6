"""`PredictionPipeline.spec.redis`: three managed nodes with Sentinel, or a server outside of the pipeline."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import AfterValidator

from sheetanchor.runtime import redis_url, sentinel_url
from sheetanchor_operator.api.fields import Block, field, rule, ruled, set_of
from sheetanchor_operator.api.network_peers import block_of
from sheetanchor_operator.api.shared_fields import (
    HOST_PATTERN,
    SIZE_PATTERN,
    AuthorityRef,
    NameRef,
    PasswordRef,
    RedisResources,
    SentinelResources,
    matches,
    url_of,
)

_OCTET: Final = "(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])"
CIDR_PATTERN: Final = (
    rf"^({_OCTET}([.]{_OCTET}){{3}}/([12]?[0-9]|3[0-2])"
    r"|[0-9a-fA-F:]*:[0-9a-fA-F:]*([.0-9]*)/([1-9]?[0-9]|1[01][0-9]|12[0-8]))$"
)
_URL_PATTERN: Final = rf"(rediss?|sentinels?)://([^/@\s]*@)?{HOST_PATTERN}(,{HOST_PATTERN})*(/\S*)?"


def _redis_url(value: str) -> str:
    """Check a URL as the workloads do.

    Raises:
        ValueError: Says what was expected.
    """
    if not sentinel_url.is_sentinel_url(value):
        url_of("redis", "rediss")(value)
    redis_url.check(value)
    return value


class Storage(Block):
    """A volume for each node."""

    model_config = ruled(
        rule(
            "self == oldSelf",
            "redis.managed.storage cannot be changed in place: volumes of a StatefulSet are fixed; make a new pipeline",
        )
    )

    size: str = field(
        ...,
        "Size of each node's volume, for instance 4Gi; four times maxMemory is safe.",
        max_length=16,
        pattern=SIZE_PATTERN,
    )
    storage_class_name: str = field("", "StorageClass; empty means the cluster's default.", max_length=253)


class ManagedRedis(Block):
    """Three nodes with Sentinel that the operator runs."""

    model_config = ruled(
        rule(
            "!('memory' in self.resources.limits) || "
            "quantity(self.maxMemory).isLessThan(quantity(string(self.resources.limits['memory'])))",
            "redis.managed.maxMemory must be below redis.managed.resources.limits.memory: lower it or raise the limit",
        ),
    )

    image: str = field(
        "", "Image of the nodes with a sheetanchor entrypoint; empty means the pipeline's image.", max_length=512
    )
    max_memory: str = field(
        "768Mi",
        "Memory for data on each node. The streams of one symbol need at most 256 MiB a line; the hot keys need 1 MiB.",
        max_length=16,
        pattern=SIZE_PATTERN,
    )
    password_secret: NameRef | None = field(
        None,
        "Secret with the passwords, one entry per user: ingest, process, infer, reanchor, replica, sentinel. "
        "If absent, the operator creates one with random passwords and never changes it.",
    )
    min_replicas_to_write: int = field(
        1,
        "Replicas that the master must be connected to in order to accept writes, so that a master that is cut off "
        "accepts none. With 0 it accepts writes in any case.",
        ge=0,
        le=2,
    )
    storage: Storage | None = field(
        None,
        "A volume for each node. Absent means memory only: if all three nodes are lost at once, the state is "
        "rebuilt from the exchange.",
    )
    resources: RedisResources = field(RedisResources(), "Resources of the server of each Redis node.")
    sentinel_resources: SentinelResources = field(
        SentinelResources(), "Resources of the Sentinel beside each server, in the same pod."
    )


class ExternalRedis(Block):
    """A server that the operator does not run: Redis 7 or Valkey 8 or newer, with functions allowed."""

    model_config = ruled(
        rule(
            "!(has(self.username) && self.url.contains('@'))",
            "redis.external.url and redis.external.username must not both name a user: remove one",
        ),
        rule(
            "!has(self.username) || has(self.passwordSecret)",
            "redis.external.username needs redis.external.passwordSecret: name the Secret with its password",
        ),
        rule(
            "!has(self.caSecret) || self.url.startsWith('rediss://')",
            "redis.external.caSecret needs a rediss:// URL: change redis.external.url or remove caSecret",
        ),
    )

    url: Annotated[str, AfterValidator(_redis_url)] = field(
        ...,
        "URL of the server: redis://host:6379/0, rediss://host:6379/0 for TLS, or "
        "sentinel://host1:26379,host2:26379/SERVICE. Without password.",
        min_length=1,
        max_length=1024,
        rules=[
            rule(
                matches(_URL_PATTERN),
                "redis.external.url must begin with redis://, rediss:// or sentinel:// and name a host: give a port "
                "from 1 to 65535 or none",
            ),
            rule(
                "!self.contains('?') && !self.contains('#')",
                "redis.external.url must have no query or fragment: the database is the path, the password comes from "
                "redis.external.passwordSecret, TLS from rediss:// and redis.external.caSecret",
            ),
            rule(
                "!self.matches('^[a-z]+://[^/@]*:[^/@]*@')",
                "redis.external.url must not contain a password: put it into a Secret and name it in "
                "redis.external.passwordSecret",
            ),
        ],
    )
    username: str | None = field(
        None,
        "ACL user; absent means the user in the URL, else the server's default user.",
        min_length=1,
        max_length=64,
        pattern=r"^[-._a-zA-Z0-9]+$",
    )
    password_secret: PasswordRef | None = field(None, "Secret with the password.")
    cidrs: tuple[Annotated[str, AfterValidator(block_of)], ...] = field(
        (),
        "CIDR blocks of the server's addresses, for instance 10.1.2.0/24: NetworkPolicies allow pods to reach its "
        "port only there. Empty means any address, since NetworkPolicies cannot name hosts.",
        schema=set_of(16, pattern=CIDR_PATTERN, maxLength=43),
    )
    ca_secret: AuthorityRef | None = field(
        None, "Secret with the certificate authority of a rediss:// server; absent means the image's authorities."
    )


class Redis(Block):
    """Where the hot state is kept; without either field it is `managed` with its defaults."""

    model_config = ruled(
        rule(
            "!(has(self.managed) && has(self.external))",
            "redis must not name both managed and external: remove one",
        ),
        rule(
            "has(self.external) == has(oldSelf.external)",
            "redis cannot be switched between managed and external in place: make a new pipeline and delete this one",
        ),
        # On this block, not on storage: a rule with oldSelf is skipped where its own block is added or removed.
        rule(
            "(has(self.managed) && has(self.managed.storage)) == "
            "(has(oldSelf.managed) && has(oldSelf.managed.storage))",
            "redis.managed.storage cannot be added or removed in place: make a new pipeline and re-anchor there",
        ),
    )

    managed: ManagedRedis | None = field(None, "Three nodes with Sentinel, spread over the zones, run by the operator.")
    external: ExternalRedis | None = field(None, "A server that the operator does not run.")

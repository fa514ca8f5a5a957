"""Settings of the scorer: environment variables `GRADALIGN_*`, overridden by the flags of `gradalign serve`."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gradalign import GradAlignError
from gradalign_scorer.hosts import is_loopback
from gradalign_scorer.storeurl import StoreURL

__all__ = ["Settings", "SettingsError", "load_settings"]

PREFIX = "GRADALIGN_"
MIB = 1 << 20
_KEY = re.compile(r"[!-~]{1,512}")
_HIDDEN = ("api_key", "redis_url")  # messages do not quote them: a URL may hold a password


class SettingsError(GradAlignError):
    """A setting cannot be used; the message names it and the fix."""


def _default_data_dir() -> Path | None:
    given = os.environ.get("XDG_DATA_HOME")
    try:
        base = Path(given) if given else Path.home() / ".local/share"
    except RuntimeError:  # no HOME, and a user id without an entry in the passwd file, as in many a container
        return None
    return base / "gradalign"


class Settings(BaseSettings):
    """Every setting; the environment variable is the upper-case name behind `GRADALIGN_`.

    Attributes:
        host: address to listen on; any other than loopback needs an API key.
        port: to listen on; 0 takes a free one.
        uds: also listen on this Unix socket, which only this user can reach.
        redis_url: store to use; None starts an embedded one.
        redis_wait_replicas: replicas of the store that must have a write before its reply is sent; 0 waits for none.
        redis_wait_seconds: longest wait for them; then the reply is a 503, and the write stands.
        data_dir: where the embedded store keeps its data; to be given where the user has no home.
        device: `auto` (CUDA where there is one, else the CPU), `cpu`, `cuda` or `cuda:N`.
        api_key: accepted keys, separated by commas in the environment; they may do everything.
        api_key_file: more accepted keys, each with what it may do; read again when it changes. With no key at all
            everyone is accepted.
        insecure: listen on any address without a key.
        tls_cert: certificate (PEM, intermediates behind it) to speak TLS on the TCP port with.
        tls_key: its private key (PEM, not encrypted).
        max_body_bytes: of a request; larger ones get a 413 before their body is read.
        max_json_bytes: of a request in JSON, or to /select: parsed into objects, it takes many times its size.
        max_admitted_bytes: of all bodies held at once.
        pool_bytes: of free body buffers kept for later requests.
        max_requests: with a body, held at once; more get a 429.
        threads: that a computation on the CPU uses. More than one pays on idle cores only: beside a busy trainer they wait
            for one another.
        max_streams: pages that may watch a run at once (`GET /runs/{run}/events`); more get a 429.
        metrics_runs: runs that /metrics shows one by one, those that changed last; 0 shows none.
        queue_size: jobs that may wait for the compute thread; more get a 429.
        body_seconds: longest wait for a request's head, for more of its body, and for its client to take more of the reply.
        stuck_seconds: a computation that takes longer counts as stuck, and /livez says so.
        cache_bytes: of validation gradients held in memory.
        drain_seconds: after SIGTERM, how long /readyz answers 503 before connections are refused.
        grace_seconds: after that, how long admitted requests may take.
        log_level: of the log on standard error.
        log_format: `plain`, or `json` with one object a line.
        tracing: export OpenTelemetry spans of requests, as the standard OTEL_* variables say.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", validate_default=True, env_ignore_empty=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    uds: Path | None = None
    redis_url: str | None = Field(default=None, repr=False)
    redis_wait_replicas: int = Field(default=0, ge=0, le=100)
    redis_wait_seconds: float = Field(default=1.0, gt=0, le=8.0, allow_inf_nan=False)
    data_dir: Path | None = Field(default_factory=_default_data_dir)
    device: str = "auto"
    api_key: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    api_key_file: Path | None = None
    insecure: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    max_body_bytes: int = Field(default=1024 * MIB, ge=1024)
    max_json_bytes: int = Field(default=32 * MIB, ge=1024)
    max_admitted_bytes: int = Field(default=2048 * MIB, ge=1024)
    pool_bytes: int = Field(default=256 * MIB, ge=0)
    max_requests: int = Field(default=64, ge=1)
    threads: int = Field(default=1, ge=1, le=1024)
    max_streams: int = Field(default=64, ge=1)
    metrics_runs: int = Field(default=50, ge=0, le=1000)
    queue_size: int = Field(default=64, ge=1)
    body_seconds: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    stuck_seconds: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    cache_bytes: int = Field(default=256 * MIB, ge=0)
    drain_seconds: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    grace_seconds: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["plain", "json"] = "plain"
    tracing: bool = False

    @field_validator("api_key", mode="before")
    @classmethod
    def _split_keys(cls, value: Any) -> Any:
        parts = value.split(",") if isinstance(value, str) else value
        stripped = (part.strip() if isinstance(part, str) else part for part in parts)
        keys = tuple(part for part in stripped if part != "")
        for position, key in enumerate(keys, start=1):
            if isinstance(key, str) and not _KEY.fullmatch(key):
                raise ValueError(
                    f"key {position} of {len(keys)} is not 1 to 512 visible ASCII characters without spaces; make one with "
                    "`openssl rand -hex 32`"
                )
        return keys

    @field_validator("redis_url", mode="before")
    @classmethod
    def _check_redis_url(cls, value: Any) -> Any:
        if value in (None, ""):
            return None
        StoreURL.parse(str(value))
        return value

    @model_validator(mode="after")
    def _check_exposure(self) -> Self:
        if not (self.api_key or self.api_key_file or self.insecure or is_loopback(self.host)):
            raise ValueError(
                f"GRADALIGN_HOST (--host) is {self.host!r}, which other machines can reach, and there is no API key; set "
                "GRADALIGN_API_KEY or GRADALIGN_API_KEY_FILE (--api-key-file), listen on 127.0.0.1, or accept everyone "
                "with GRADALIGN_INSECURE=1 (--insecure)"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            there, absent = ("CERT", "KEY") if self.tls_cert else ("KEY", "CERT")
            raise ValueError(
                f"GRADALIGN_TLS_{there} (--tls-{there.lower()}) is set and GRADALIGN_TLS_{absent} "
                f"(--tls-{absent.lower()}) is not; give both for TLS, or neither"
            )
        if self.redis_wait_replicas and self.redis_url is None:
            raise ValueError(
                f"GRADALIGN_REDIS_WAIT_REPLICAS (--redis-wait-replicas) is {self.redis_wait_replicas}, and the embedded "
                "store has no replicas; give a server that has as GRADALIGN_REDIS_URL (--redis-url), or leave it 0"
            )
        if self.max_admitted_bytes < self.max_body_bytes:
            raise ValueError(
                f"GRADALIGN_MAX_ADMITTED_BYTES (--max-admitted-bytes) is {self.max_admitted_bytes}, less than "
                f"GRADALIGN_MAX_BODY_BYTES (--max-body-bytes), {self.max_body_bytes}: the largest request could never be "
                "admitted; raise it"
            )
        return self

    def keys(self) -> tuple[bytes, ...]:
        """The accepted API keys."""
        return tuple(key.get_secret_value().encode() for key in self.api_key)

    def keys_travel_in_clear(self) -> bool:
        """Whether other machines send their keys without TLS."""
        return bool(self.api_key or self.api_key_file) and self.tls_cert is None and not is_loopback(self.host)


def load_settings(flags: Mapping[str, Any] | None = None) -> Settings:
    """The settings of the environment, overridden by those flags that are not None.

    Raises:
        SettingsError: naming every setting that cannot be used, or a variable that is no setting but looks like one.
    """
    _check_spelling(os.environ)
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise SettingsError("; ".join(_explained(fault) for fault in error.errors())) from None


def _check_spelling(environment: Mapping[str, str]) -> None:
    """A misspelt GRADALIGN_API_KEYS would leave the scorer open without a word.

    Names that resemble no setting are left alone: clients, trainers and Kubernetes (GRADALIGN_SERVICE_HOST) have theirs.
    """
    known = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
    for name in environment:
        if name.startswith(PREFIX) and name not in known:
            similar = difflib.get_close_matches(name, known, n=1, cutoff=0.93)
            if similar:
                raise SettingsError(f"{name} is no setting of the scorer; did you mean {similar[0]}? Else rename it.")


def _explained(fault: Mapping[str, Any]) -> str:
    message = str(fault["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if not fault["loc"]:
        return f"{message}."
    name = str(fault["loc"][0])
    shown = "" if name in _HIDDEN else f" is {fault['input']!r}"
    expected = message if str(fault["msg"]).startswith("Value error") else f"expected {message}"
    return f"{PREFIX}{name.upper()} (--{name.replace('_', '-')}){shown}: {expected}."

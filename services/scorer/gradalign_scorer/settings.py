"""Settings of the scorer: environment variables `GRADALIGN_*`, overridden by the flags of `gradalign serve`."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gradalign import GradAlignError

__all__ = ["Settings", "SettingsError", "load_settings"]

PREFIX = "GRADALIGN_"
MIB = 1 << 20
_REDIS_SCHEMES = ("redis://", "rediss://", "unix://")


class SettingsError(GradAlignError):
    """A setting cannot be used; the message names it and the fix."""


def _default_data_dir() -> Path:
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share"
    return Path(base) / "gradalign"


class Settings(BaseSettings):
    """Every setting; the environment variable is the upper-case name behind `GRADALIGN_`.

    Attributes:
        host: address to listen on; any other than loopback needs an API key.
        port: to listen on; 0 takes a free one.
        uds: also listen on this Unix socket, which only this user can reach.
        redis_url: store to use; None starts an embedded one.
        data_dir: where the embedded store keeps its data.
        device: `auto` (CUDA where there is one, else the CPU), `cpu`, `cuda` or `cuda:N`.
        api_key: accepted keys, separated by commas in the environment; none accepts everyone.
        insecure: listen on any address without a key.
        max_body_bytes: of a request; larger ones get a 413 before their body is read.
        max_json_bytes: of a request in JSON, which costs many times the memory of msgpack.
        max_admitted_bytes: of all bodies held at once.
        pool_bytes: of free body buffers kept for later requests.
        max_requests: with a body, held at once; more get a 429.
        queue_size: jobs that may wait for the compute thread; more get a 429.
        body_seconds: longest wait for more of a body.
        stuck_seconds: a computation that takes longer counts as stuck, and /livez says so.
        cache_bytes: of validation gradients held in memory.
        drain_seconds: after SIGTERM, how long /readyz answers 503 before connections are refused.
        grace_seconds: after that, how long admitted requests may take.
        log_level: of the log on standard error.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", validate_default=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    uds: Path | None = None
    redis_url: str | None = None
    data_dir: Path = Field(default_factory=_default_data_dir)
    device: str = "auto"
    api_key: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    insecure: bool = False
    max_body_bytes: int = Field(default=1024 * MIB, ge=1024)
    max_json_bytes: int = Field(default=32 * MIB, ge=1024)
    max_admitted_bytes: int = Field(default=2048 * MIB, ge=1024)
    pool_bytes: int = Field(default=256 * MIB, ge=0)
    max_requests: int = Field(default=64, ge=1)
    queue_size: int = Field(default=64, ge=1)
    body_seconds: float = Field(default=30.0, gt=0)
    stuck_seconds: float = Field(default=60.0, gt=0)
    cache_bytes: int = Field(default=256 * MIB, ge=0)
    drain_seconds: float = Field(default=1.0, ge=0)
    grace_seconds: float = Field(default=30.0, gt=0)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("api_key", mode="before")
    @classmethod
    def _split_keys(cls, value: Any) -> Any:
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(part.strip() if isinstance(part, str) else part for part in parts if part not in ("", " "))

    @field_validator("redis_url", mode="before")
    @classmethod
    def _check_redis_url(cls, value: Any) -> Any:
        if value in (None, ""):
            return None
        if not str(value).startswith(_REDIS_SCHEMES):
            raise ValueError(f"expected a URL that begins with {', '.join(_REDIS_SCHEMES)}")
        return value

    @model_validator(mode="after")
    def _check_exposure(self) -> Self:
        if not (self.api_key or self.insecure or is_loopback(self.host)):
            raise ValueError(
                f"GRADALIGN_HOST (--host) is {self.host!r}, which other machines can reach, and there is no API key; set "
                "GRADALIGN_API_KEY, listen on 127.0.0.1, or accept everyone with --insecure"
            )
        if self.max_admitted_bytes < self.max_body_bytes:
            raise ValueError(
                f"GRADALIGN_MAX_ADMITTED_BYTES is {self.max_admitted_bytes}, less than GRADALIGN_MAX_BODY_BYTES "
                f"({self.max_body_bytes}): the largest request could never be admitted; raise it"
            )
        return self

    def keys(self) -> tuple[bytes, ...]:
        """The accepted API keys."""
        return tuple(key.get_secret_value().encode() for key in self.api_key)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def load_settings(flags: Mapping[str, Any] | None = None) -> Settings:
    """The settings of the environment, overridden by those flags that are not None.

    Raises:
        SettingsError: naming every setting that cannot be used.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise SettingsError("; ".join(_explained(fault) for fault in error.errors())) from None


def _explained(fault: Mapping[str, Any]) -> str:
    message = str(fault["msg"]).removeprefix("Value error, ")
    if not fault["loc"]:
        return f"{message}."
    name = str(fault["loc"][0])
    shown = "" if name == "api_key" else f" is {fault['input']!r}"
    return f"{PREFIX}{name.upper()} (--{name.replace('_', '-')}){shown}: {message}."

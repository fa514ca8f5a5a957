"""What requests share: a header map, and for each problem its sketch, the products of its rollouts, or neither."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from gradalign.errors import InvalidValue
from gradalign.wire.checks import (
    check_distinct_ids,
    check_int,
    check_name,
    check_numbers,
    check_one_of,
    check_products,
    shown,
)
from gradalign.wire.matrix import DTYPES, SketchMatrix
from gradalign.wire.projection import Projection

__all__ = ["MAX_PROBLEMS", "NORMS_KINDS", "Header", "RowsRequest", "replace_value", "without_bin"]

MAX_PROBLEMS = 4096
NORMS_KINDS = ("exact", "head")


class Header:
    """Reads a message from a header map and writes it back; None fields stay off the wire."""

    required: ClassVar[tuple[str, ...]] = ()

    def header(self) -> dict[str, Any]:
        """The header map of this message, without absent fields."""
        header: dict[str, Any] = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value is None or isinstance(value, SketchMatrix):
                continue
            header[field.name] = value.to_map() if isinstance(value, Projection) else value
        return header

    @classmethod
    def _values(cls, header: Any, *, also: Sequence[str] = (), optional: Sequence[str] = ()) -> dict[str, Any]:
        known = [f.name for f in fields(cls) if f.name != "sketches"]  # type: ignore[arg-type]
        if not isinstance(header, Mapping):
            raise InvalidValue(f"the header is {shown(header)}; expected a map with string keys.", param="header")
        unknown = [key for key in header if key not in (*known, *also, *optional)]
        if unknown:
            raise InvalidValue(
                f"unknown key {shown(unknown[0])}; the keys of this request are {', '.join([*known, *also, *optional])}.",
                param=shown(unknown[0])[1:-1] if isinstance(unknown[0], str) else shown(unknown[0]),
            )
        missing = [key for key in (*cls.required, *also) if header.get(key) is None]
        if missing:
            raise InvalidValue(
                f"{missing[0]} is missing; {', '.join((*cls.required, *also))} are required.", param=missing[0]
            )
        return {key: value for key, value in header.items() if key in known and value is not None}


@dataclass(frozen=True, kw_only=True)
class RowsRequest(Header):
    """What /score and /refresh_validation share: a row for each problem, its sketch or the products of its rollouts."""

    run_id: str
    policy_version: int
    projection: Projection | None = None
    problem_ids: list[str]
    sketches: SketchMatrix | None = None
    norms: list[float] | None = None
    rollouts: list[int] | None = None
    tokens: list[int] | None = None
    request_id: str | None = None
    epoch: int | None = None
    products: list[list[float]] | None = None
    norms_kind: str | None = None

    required: ClassVar[tuple[str, ...]] = ("run_id", "policy_version", "problem_ids")
    only_sketches: ClassVar[tuple[str, ...]] = ("projection", "sketches")
    only_products: ClassVar[tuple[str, ...]] = ("norms_kind",)
    only_gradients: ClassVar[tuple[str, ...]] = ("norms",)

    def __post_init__(self) -> None:
        check_name("run_id", self.run_id)
        replace_value(self, "policy_version", check_int("policy_version", self.policy_version))
        replace_value(self, "problem_ids", check_distinct_ids("problem_ids", self.problem_ids, most=MAX_PROBLEMS))
        self._check_per_problem("norms", low=0.0)
        self._check_per_problem("rollouts", low=0, integers=True)
        self._check_per_problem("tokens", low=0, integers=True)
        if self.request_id is not None:
            check_name("request_id", self.request_id)
        if self.epoch is not None:
            replace_value(self, "epoch", check_int("epoch", self.epoch))
        self._check_kind()
        if self.kind == "sketches":
            self._check_sketches()
        elif self.kind == "products":
            replace_value(self, "products", check_products("products", self.products, count=len(self.problem_ids)))
            self._check_norms_kind()

    def _check_per_problem(self, name: str, *, low: float, high: float = float("inf"), integers: bool = False) -> None:
        value = getattr(self, name)
        if value is not None:
            count = len(self.problem_ids)
            replace_value(self, name, check_numbers(name, value, count=count, low=low, high=high, integers=integers))

    def _check_kind(self) -> None:
        """A request has sketches or products or neither, and only keys that go with its kind."""
        if self.sketches is not None and self.products is not None:
            raise InvalidValue(
                "both sketches and products were sent; expected one of them. Send the kind that the run has.",
                param="products",
            )
        for name in self._strangers(self.kind):
            if getattr(self, name) is not None:
                raise _of_other_kind(name, self.kind, *self._homes(name))

    @classmethod
    def _strangers(cls, kind: str) -> tuple[str, ...]:
        """Keys that do not go with a kind."""
        if kind == "sketches":
            return cls.only_products
        return cls.only_sketches if kind == "products" else cls.only_gradients + cls.only_sketches + cls.only_products

    @classmethod
    def _homes(cls, name: str) -> tuple[str, ...]:
        """The kinds that a key goes with."""
        return tuple(kind for kind in ("sketches", "products") if name not in cls._strangers(kind))

    def _check_sketches(self) -> None:
        if self.sketches is None or self.projection is None:
            missing = "sketches" if self.sketches is None else "projection"
            raise InvalidValue(
                f"{missing} is missing; expected sketches with their projection (a row of numbers for each problem id), "
                "or products (a list of numbers for each problem id).",
                param=missing,
            )
        if (self.sketches.rows, self.sketches.dim) != (len(self.problem_ids), self.projection.dim):
            raise InvalidValue(
                f"the sketches are [{self.sketches.rows}, {self.sketches.dim}]; expected "
                f"[{len(self.problem_ids)} problem_ids, {self.projection.dim} = projection.dim].",
                param="sketches",
            )

    def _check_norms_kind(self) -> None:
        if self.norms_kind is None:
            return
        check_one_of("norms_kind", self.norms_kind, NORMS_KINDS)
        if self.norms is None:
            raise InvalidValue("norms_kind was sent without norms; send both or neither.", param="norms_kind")

    @property
    def kind(self) -> str:
        """`products` or `sketches`; of a /score without either, `pass_rates`."""
        return "sketches" if self.products is None else "products"

    def header(self) -> dict[str, Any]:
        """The header map, with the dtype of the bin where there is one, and its scales where that is int8."""
        header = super().header()
        if self.sketches is not None:
            header["dtype"] = self.sketches.dtype
            if self.sketches.scales is not None:
                header["scales"] = list(self.sketches.scales)
        return header

    @classmethod
    def from_header(cls, header: Any, data: memoryview) -> Self:
        """A request from the msgpack objects of its body.

        Args:
            header: the decoded header map.
            data: the bytes of the bin; empty for a request without sketches.

        Raises:
            InvalidValue: naming the key, what was given and what was expected.
        """
        kind = without_bin(header)
        if kind and not (kind == "pass_rates" and len(data)):
            if len(data):
                raise InvalidValue(
                    f"products were sent and a bin of {len(data)} bytes behind the header; expected an empty bin or none. "
                    "Send the kind that the run has.",
                    param="products",
                )
            return cls._of_header(header, kind)
        values = cls._values(header, also=("projection", "dtype"), optional=("scales",))
        projection = Projection.from_map(values["projection"])
        ids = check_distinct_ids("problem_ids", values["problem_ids"], most=MAX_PROBLEMS)
        dtype = check_one_of("dtype", header["dtype"], DTYPES)
        matrix = SketchMatrix(data, len(ids), projection.dim, dtype, header.get("scales"))
        return cls(**{**values, "projection": projection, "problem_ids": ids, "sketches": matrix})

    @classmethod
    def from_json(cls, body: Any) -> Self:
        """A request from a decoded JSON body, whose `sketches` are lists of numbers; of `dtype` only `int8` counts."""
        kind = without_bin(_mapping(body))
        if kind and not (kind == "pass_rates" and body.get("sketches") is not None):
            return cls._of_header({key: value for key, value in body.items() if value is not None}, kind)
        also = ("projection",) if "sketches" in body else ()
        header = {key: value for key, value in body.items() if key not in ("sketches", "dtype", "scales")}
        values = cls._values(header, also=also)
        if body.get("sketches") is None:
            raise InvalidValue(
                "sketches is missing; expected a list of rows of numbers, one for each problem id (or products, a list of "
                "numbers for each problem id).",
                param="sketches",
            )
        projection = Projection.from_map(values["projection"])
        return cls(**{**values, "projection": projection, "sketches": _json_matrix(body)})

    @classmethod
    def _of_header(cls, header: Mapping[str, Any], kind: str) -> Self:
        for name in (*cls.only_sketches, "dtype", "scales"):
            if header.get(name) is not None:
                raise _of_other_kind(name, kind, "sketches")
        return cls(**cls._values({key: value for key, value in header.items() if key not in ("dtype", "scales")}))


def replace_value(message: object, name: str, value: object) -> None:
    """Put a checked value into a frozen message while it is made."""
    object.__setattr__(message, name, value)


def _of_other_kind(name: str, kind: str, *homes: str) -> InvalidValue:
    with_what = "pass_rates alone" if kind == "pass_rates" else kind
    advice = f"leave it out, or send {' or '.join(homes)} instead of {with_what}"
    return InvalidValue(
        f"{name} was sent with {with_what}, and goes with {' or '.join(homes)} only; {advice}.", param=name
    )


def _json_matrix(body: Mapping[str, Any]) -> SketchMatrix:
    """The sketches of a JSON body: numbers, or with dtype int8 whole numbers and scales."""
    whole, scales = body.get("dtype") == "int8", body.get("scales")
    if whole == (scales is not None):
        return SketchMatrix.of_json(body["sketches"], scales)
    missing, given = ("scales", "dtype int8") if whole else ("dtype int8", "scales")
    raise InvalidValue(
        f"{given} was sent without {missing}; expected both, with whole numbers as sketches and the max|row| / 127 of "
        "each row as scales, or neither, with the numbers as they are.",
        param="scales",
    )


def without_bin(header: Any) -> str | None:
    """The kind of a request whose header says that no sketches belong to it, `products` or `pass_rates`; else None."""
    if not isinstance(header, Mapping):
        return None
    if header.get("products") is not None:
        return "products"
    of_rates = header.get("pass_rates") is not None and all(
        header.get(name) is None for name in ("projection", "dtype")
    )
    return "pass_rates" if of_rates else None


def _mapping(body: Any) -> Mapping[str, Any]:
    if not isinstance(body, Mapping):
        raise InvalidValue(f"the body is {shown(body)}; expected a JSON object.", param="body")
    return body

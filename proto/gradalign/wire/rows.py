"""What requests share: a header map, and with it a row for each problem, its sketch or the products of its rollouts."""

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

__all__ = ["MAX_PROBLEMS", "NORMS_KINDS", "Header", "RowsRequest", "replace_value"]

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
        if self.products is None:
            self._check_sketches()
        else:
            replace_value(self, "products", check_products("products", self.products, count=len(self.problem_ids)))
            self._check_norms_kind()

    def _check_per_problem(self, name: str, *, low: float, high: float = float("inf"), integers: bool = False) -> None:
        value = getattr(self, name)
        if value is not None:
            count = len(self.problem_ids)
            replace_value(self, name, check_numbers(name, value, count=count, low=low, high=high, integers=integers))

    def _check_kind(self) -> None:
        """A request has sketches or products, and only keys that go with its kind."""
        if self.sketches is not None and self.products is not None:
            raise InvalidValue(
                "both sketches and products were sent; expected one of them. Send the kind that the run has.",
                param="products",
            )
        strangers = self.only_products if self.products is None else self.only_sketches
        for name in strangers:
            if getattr(self, name) is not None:
                raise _of_other_kind(name, self.kind)

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
        """`products` or `sketches`."""
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
            data: the bytes of the bin; empty for a request with products.

        Raises:
            InvalidValue: naming the key, what was given and what was expected.
        """
        if _has_products(header):
            if len(data):
                raise InvalidValue(
                    f"products were sent and a bin of {len(data)} bytes behind the header; expected an empty bin or none. "
                    "Send the kind that the run has.",
                    param="products",
                )
            return cls._of_products(header)
        values = cls._values(header, also=("projection", "dtype"), optional=("scales",))
        projection = Projection.from_map(values["projection"])
        ids = check_distinct_ids("problem_ids", values["problem_ids"], most=MAX_PROBLEMS)
        dtype = check_one_of("dtype", header["dtype"], DTYPES)
        matrix = SketchMatrix(data, len(ids), projection.dim, dtype, header.get("scales"))
        return cls(**{**values, "projection": projection, "problem_ids": ids, "sketches": matrix})

    @classmethod
    def from_json(cls, body: Any) -> Self:
        """A request from a decoded JSON body, whose `sketches` are lists of numbers; of `dtype` only `int8` counts."""
        if _has_products(_mapping(body)):
            return cls._of_products({key: value for key, value in body.items() if value is not None})
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
    def _of_products(cls, header: Mapping[str, Any]) -> Self:
        for name in (*cls.only_sketches, "dtype", "scales"):
            if header.get(name) is not None:
                raise _of_other_kind(name, "products")
        return cls(**cls._values({key: value for key, value in header.items() if key not in ("dtype", "scales")}))


def replace_value(message: object, name: str, value: object) -> None:
    """Put a checked value into a frozen message while it is made."""
    object.__setattr__(message, name, value)


def _of_other_kind(name: str, kind: str) -> InvalidValue:
    other = "products" if kind == "sketches" else "sketches"
    advice = f"leave it out, or send {other} instead of {kind}"
    return InvalidValue(f"{name} was sent with {kind}, and goes with {other} only; {advice}.", param=name)


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


def _has_products(header: Any) -> bool:
    return isinstance(header, Mapping) and header.get("products") is not None


def _mapping(body: Any) -> Mapping[str, Any]:
    if not isinstance(body, Mapping):
        raise InvalidValue(f"the body is {shown(body)}; expected a JSON object.", param="body")
    return body

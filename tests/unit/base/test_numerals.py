"""Numbers as text: no exponents, and integers that pandas turned into floats."""

from decimal import Decimal

import numpy as np
import pytest

from gradalign_trainer.numerals import as_integer, as_number, counted, numeral


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.00001, "0.00001"), (-1e-7, "-0.0000001"), (1.5e-10, "0.00000000015"), (1e16, "10000000000000000"),
        (1e22, "1" + "0" * 22), (1e23, "1" + "0" * 23), (5.0, "5"), (-5.0, "-5"), (-0.0, "0"), (0.0, "0"), (2.5, "2.5"),
        (0.1, "0.1"), (7, "7"), (10**40, "1" + "0" * 40), (100.0, "100"), (Decimal("5.00"), "5"),
        (Decimal("2.50"), "2.5"), (Decimal("1E-9"), "0.000000001"), (Decimal("1E+3"), "1000"),
    ],
)  # fmt: skip
def test_a_number_is_written_in_digits_and_reads_back(number, text):
    assert numeral(number) == text
    assert type(number)(text) == number


@pytest.mark.parametrize("number", [float("nan"), float("inf"), Decimal("NaN"), Decimal("-Infinity")])
def test_what_is_not_finite_has_no_digits(number):
    with pytest.raises(ValueError, match="expected a finite number"):
        numeral(number)
    assert as_integer(number) is None


@pytest.mark.parametrize(
    ("value", "integer"),
    [
        (0, 0), (0.0, 0), (5.0, 5), (Decimal("5.00"), 5), (np.int64(3), 3), (np.float32(3), 3), (np.float64(0), 0),
        (2.5, None), (True, None), (np.bool_(True), None), ("5", None), (None, None), (1e22, None), (np.array(3), 3),
        (np.array([3]), None), ([], None),
    ],
)  # fmt: skip
def test_integral_numbers_of_any_library_are_integers(value, integer):
    assert as_integer(value) == integer


def test_numpy_s_scalars_are_plain_numbers():
    assert type(as_number(np.float64(2.5))) is float
    assert type(as_number(np.int8(2))) is int


def test_one_is_counted_as_one():
    assert [counted(n, "round") for n in (0, 1, 2)] == ["0 rounds", "1 round", "2 rounds"]
    assert counted(2, "batch", "batches") == "2 batches"

"""The reward by math-verify: equality of final answers, in a process that may hang or die."""

import json
import os
import threading
import time
from decimal import Decimal

import pytest

from gradalign_trainer.datasets import load_problems
from gradalign_trainer.problems import Problem
from gradalign_trainer.rewards.math_reward import MathVerify


@pytest.fixture(scope="module")
def reward():
    reward = MathVerify()
    yield reward
    reward.close()


def problem(answer, problem_id="p"):
    return Problem(problem_id, "q", answer)


@pytest.mark.parametrize(
    ("answer", "completion", "right"),
    [
        ("5", "5", 1.0),
        ("5", "2 + 3 makes 5.", 1.0),
        ("5", "The answer is $\\boxed{5}$.", 1.0),
        ("5", "6", 0.0),
        ("5", "", 0.0),
        ("0.5", "$\\frac{1}{2}$", 1.0),
        ("$\\frac{3}{4}$", "0.75", 1.0),
        ("\\boxed{x^2 + 2x + 1}", "$(x+1)^2$", 1.0),
        ("\\sqrt{8}", "$2\\sqrt{2}$", 1.0),
        ("She has 3 + 4 = 7 eggs.\n#### 7", "So she has 7", 1.0),
        ("She has 3 + 4 = 7 eggs.\n#### 7", "So she has 4", 0.0),
        ("1/3", "0.33", 0.0),
    ],
)
def test_answers_are_compared_mathematically(reward, answer, completion, right):
    assert reward(problem(answer), completion) == right


UNITS = (
    "dollars",
    "people",
    "weeks",
    "eggs",
    "apples",
    "cents",
    "euros",
    "students",
    "books",
    "percent",
    "miles",
    "cm",
    "USD",
)


@pytest.mark.parametrize(
    "gold",
    [
        *(f"18 {unit}" for unit in UNITS), "5 km/h", "5km/h", "5 m/s", "18 dollars per week", "12 square units", "18 cm^2",
        "50%",
        "50\\%", "$18", "\\$18", "$\\$18$", "-$5", "€18", "£18.50", "\\$1,000", "\\text{18 dollars}", "18\\text{ cm}",
        "18 \\text{ eggs}", "$5$ apples", "He has 18 eggs", "The answer is 18", "1,000", "1,000 dollars", "1 000", "1\\,000",
        "x = 5", "(1,2)", "[0,1)", "(-\\infty, 3]", "\\{1,2\\}", "1, 2, 3", "5 and 7", "1/2", "1/2 cup", "\\frac12", "3 1/2",
        "3\\frac{1}{2}", "x^2+1", "5x", "3 xy", "2 + 3i", "2\\pi", "\\sqrt{2}", "7 \\times 10^{3}", "1e-05", "-1e-7",
        "1e+16",
        "1e22", "2e-3", "Tuesday", "\\text{Tuesday}", "A", "(A)", "2020-01-02", "3:30", "10:15 a.m.", "x>3", "5!", "yes",
        "\\begin{pmatrix}1\\\\2\\end{pmatrix}", "3 apples and 4 pears", "18.0", "18.", "-0.5", "0",
    ],
)  # fmt: skip
def test_a_gold_answer_earns_for_itself(reward, gold):
    assert reward(problem(gold, gold), f"So it is \\boxed{{{gold}}}.") == 1.0
    assert reward(problem(f"Steps 3.\n#### {gold}", f"gsm {gold}"), f"\\boxed{{{gold}}}") == 1.0


@pytest.mark.parametrize(
    ("gold", "completion", "right"),
    [
        *((f"18 {unit}", "\\boxed{18}", 1.0) for unit in UNITS),
        *((f"18 {unit}", f"It is 18 {unit}", 1.0) for unit in UNITS if unit != "percent"),
        *((f"18 {unit}", "\\boxed{17}", 0.0) for unit in UNITS),
        ("18 dollars", "\\boxed{\\$18}", 1.0), ("18 dollars", "\\boxed{18\\text{ dollars}}", 1.0),
        ("18 dollars", "\\boxed{18.00 dollars}", 1.0), ("18 dollars", "$18 dollars$", 1.0),
        ("\\$18", "\\boxed{18}", 1.0), ("\\$18", "$18", 1.0), ("\\$18", "\\boxed{19}", 0.0), ("-$5", "\\boxed{-5}", 1.0),
        ("-$5", "\\boxed{5}", 0.0), ("€18", "\\boxed{18}", 1.0), ("5 km/h", "\\boxed{5}", 1.0), ("5 m/s", "\\boxed{5}", 1.0),
        ("5km/h", "\\boxed{5}", 1.0), ("18eggs", "\\boxed{18}", 1.0), ("100USD", "\\boxed{100}", 1.0),
        ("\\text{18 dollars}", "\\boxed{18}", 1.0), ("1,000 dollars", "\\boxed{1000}", 1.0),
        ("1,000 dollars", "\\boxed{1}", 0.0), ("1 000", "\\boxed{1000}", 1.0), ("1 000", "\\boxed{0}", 0.0),
        ("1\\,000", "\\boxed{1000}", 1.0), ("1/2 cup", "\\boxed{\\frac{1}{2}}", 1.0), ("1/2 cup", "\\boxed{0.5}", 1.0),
        ("3 1/2", "\\boxed{3.5}", 1.0), ("3 1/2", "\\boxed{2}", 0.0), ("3 1/2 cups", "\\boxed{7/2}", 1.0),
        ("50%", "\\boxed{50}", 1.0), ("x = 5", "\\boxed{5}", 1.0), ("5x", "\\boxed{5}", 0.0), ("3 xy", "\\boxed{3}", 0.0),
        ("x^2+1", "\\boxed{1}", 0.0), ("2\\pi", "\\boxed{2}", 0.0), ("10 + 5 apples", "\\boxed{5}", 0.0),
        ("log base 2 of x", "\\boxed{2}", 0.0), ("5 and 7", "\\boxed{7}", 0.0), ("3 apples and 4 pears", "\\boxed{4}", 0.0),
        ("1e-05", "\\boxed{0.00001}", 1.0), ("1e-05", "\\boxed{e-5}", 0.0), ("1e-05", "\\boxed{10^{-5}}", 1.0),
        ("1e-05", "\\boxed{1e-5}", 1.0), ("0.00001", "\\boxed{1e-05}", 1.0), ("1e+16", "\\boxed{10^{16}}", 1.0),
        ("1e22", "\\boxed{10^{22}}", 1.0), ("1e22", "\\boxed{22e}", 0.0), ("-1e-7", "\\boxed{-0.0000001}", 1.0),
        ("2e-3", "\\boxed{0.002}", 1.0), ("2e-3", "\\boxed{2e-3}", 1.0), ("2020-01-02", "\\boxed{2017}", 0.0),
    ],
)  # fmt: skip
def test_a_number_with_words_is_its_number_and_nothing_else_is(reward, gold, completion, right):
    assert reward(problem(gold, gold), completion) == right


@pytest.mark.parametrize("answer", [0.00001, -1e-7, 1e16, 1e22, 1.5e-10, 5.0, 0])
def test_numbers_of_a_file_are_graded_as_they_are(reward, tmp_path, answer):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "p", "answer": answer}))
    loaded = load_problems(str(tmp_path / "a.jsonl")).problems[0]
    assert reward(loaded, f"\\boxed{{{Decimal(repr(answer)):f}}}") == 1.0
    assert reward(loaded, "\\boxed{e-5}") == 0.0


def test_long_answers_and_boxes_cost_no_time(reward):
    begun = time.monotonic()
    for text in ("1 " * 50_000, "a" * 100_000 + " 5 " + "b" * 100_000, "1e" + "9" * 5000, "9e9999"):
        reward(problem(text, "long"), f"\\boxed{{{text}}}")
        reward(problem("18 eggs"), f"\\boxed{{{text}}}")
    assert time.monotonic() - begun < 100


def test_an_answer_that_cannot_be_read_is_reported_once(reward, caplog):
    for completion in ("a", "b"):
        assert reward(problem("see page 4 ####", "cat"), completion) == 0.0
    assert reward.unreadable == {"cat"}
    assert caplog.text.count("No completion can earn a reward on problem cat") == 1
    assert "'see page 4 ####'" in caplog.text


def test_odd_completions_earn_nothing_and_stop_nothing(reward):
    for completion in (
        "\x00\ud800",
        "{" * 5000,
        "\\frac{1}{0}",
        "\n" * 3 + '{"right": true}\n',
        "$" * 99,
        "x" * 200_000,
    ):
        assert reward(problem("5"), completion) == 0.0
    assert reward(problem("5"), "5") == 1.0


def test_a_hanging_expression_is_killed_in_time_and_the_next_is_judged(caplog):
    reward = MathVerify(timeout=120.0)
    assert reward(problem("5"), "5") == 1.0
    reward._timeout = 1.0
    worker = reward._worker._process
    assert reward(problem("5", "slow"), "$9^{9^{9^{9}}} - 1$") == 0.0
    reward._timeout = 120.0
    assert reward.timeouts == 1
    assert "A completion of problem slow counts 0: math-verify gave no verdict in 1 s (1 such so far)" in caplog.text
    assert worker.poll() is not None
    assert reward(problem("5"), "5") == 1.0
    reward.close()


def test_a_worker_that_dies_is_replaced(reward):
    assert reward(problem("5"), "5") == 1.0
    reward._worker._process.kill()
    reward._worker._process.wait()
    assert reward(problem("5"), "5") == 0.0
    assert reward(problem("5"), "5") == 1.0


def test_threads_get_their_own_verdicts(reward):
    verdicts = {}

    def ask(number):
        verdicts[number] = [reward(problem(str(number)), str(said)) for said in range(8)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == {number: [float(said == number) for said in range(8)] for number in range(8)}


def test_close_leaves_no_process_and_may_be_called_twice():
    reward = MathVerify()
    assert reward(problem("5"), "5") == 1.0
    pid = reward._worker._process.pid
    reward.close()
    reward.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_reward_that_is_let_go_stops_its_worker():
    reward = MathVerify()
    reward(problem("5"), "5")
    process = reward._worker._process
    del reward
    assert process.poll() is not None

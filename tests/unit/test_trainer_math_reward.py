"""The reward by math-verify: equality of final answers, in a process that may hang or die."""

import os
import threading

import pytest

from gradalign_trainer.math_reward import MathVerify
from gradalign_trainer.problems import Problem


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

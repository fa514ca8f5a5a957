"""A run's settings: from files, `--set` and the environment; whatever is wrong is said at once."""

from pathlib import Path

import pytest

from gradalign_trainer.config.files import load_config
from gradalign_trainer.config.training import TrainConfig
from gradalign_trainer.settings import SettingsError

WHOLE = """
run_id = "gsm8k-cosine"
output = "runs/gsm8k"
rounds = 40
learning_rate = 1

[model]
path = "some/model"
device = "cuda:1"

[data]
pool = [{ path = "a.jsonl", limit = 5 }, "b.parquet"]
validation = { kind = "parquet", path = "v.parquet" }
reward = "exact"

[scorer]
url = "http://127.0.0.1:8000"

[tracking]
trackers = ["tensorboard"]
"""
ASKING = 'run_id = "r"\noutput = "o"\n'
LEAST = 'run_id = "r"\noutput = "o"\nstrategy = "random"\n'
ANSWERED = '\n[scorer]\nurl = "http://h:1"'


@pytest.fixture
def load(tmp_path):
    def load(text, *overrides, environ=None):
        path = tmp_path / "run.toml"
        path.write_text(text)
        return load_config(path, overrides, environ=environ or {})

    return load


def faults_of(load, text, *overrides, environ=None):
    with pytest.raises(SettingsError, match=r"run\.toml cannot be used") as caught:
        load(text, *overrides, environ=environ)
    return caught.value.faults


def test_a_file_is_read_into_its_fields(load):
    config = load(WHOLE)
    assert config.run_id == "gsm8k-cosine"
    assert config.output == Path("runs/gsm8k")
    assert config.rounds == 40
    assert config.learning_rate == 1.0
    assert (config.model, config.device) == ("some/model", "cuda:1")
    assert config.pool == [{"path": "a.jsonl", "limit": 5}, "b.parquet"]
    assert config.scorer_url == "http://127.0.0.1:8000"
    assert config.trackers == ("tensorboard",)
    assert config.pool_size == TrainConfig(run_id="x", output=Path("y")).pool_size


def test_overrides_come_last_and_in_order(load):
    config = load(WHOLE, "rounds=3", "rounds=4", "model.device=cpu", "run_id=12", 'data.pool={ path = "c.jsonl" }')
    assert (config.rounds, config.device, config.run_id) == (4, "cpu", "12")
    assert config.pool == {"path": "c.jsonl"}


def test_an_override_that_is_no_assignment_names_the_file_and_itself(load):
    assert faults_of(load, LEAST, "rounds") == [
        "'rounds': expected key=value, for example rounds=20 or scorer.url=http://host:8000."
    ]


def test_every_fault_of_a_file_is_reported_at_once(load):
    text = """
output = "o"
rouns = 5
rounds = 0
strategy = "cosin"
select_fraction = 1.5

[data]
pool = { path = "a.jsonl", limt = 5 }
reward = "exat"
pool_size = 3

[model]
device = "gpu"
"""
    faults = faults_of(load, text)
    beginnings = [
        "unknown key 'rouns' (did you mean 'rounds'?). Valid keys: run_id, output,",
        "unknown key 'data.pool_size'; 'pool_size' stands at the top of the file, before the first [section].",
        'run_id is missing; add a line like run_id = "my-run" at the top of the file.',
        "model.device = 'gpu' (a string): expected auto, cpu, mps, cuda or cuda:N; the default is auto.",
        "data.pool = {'path': 'a.jsonl', 'limt': 5} (a table): key 'limt' is unknown for kind 'jsonl'; expected any of",
        "data.reward = 'exat' (a string): expected one of arithmetic, exact,",
        "strategy = 'cosin' (a string): expected one of",
        "select_fraction = 1.5 (a number): expected a value above 0 and at most 1; the default is",
        "rounds = 0 (an integer): expected a value at least 1; the default is 15.",
    ]
    assert len(faults) == len(beginnings)
    for beginning in beginnings:
        assert [fault for fault in faults if fault.startswith(beginning)], beginning
    assert any("(did you mean 'limit'?)" in fault for fault in faults)
    assert any("(did you mean 'cosine'?)" in fault for fault in faults)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[scorer]\nurI = 'x'", "unknown key 'scorer.urI' (did you mean 'scorer.url'?). Valid keys of [scorer]: "),
        ("url = 'http://x'", "unknown key 'url' (did you mean 'scorer.url'?)."),
        ("data = 'a.jsonl'", "data = 'a.jsonl': expected a section [data] with any of data.pool,"),
        ("[scorer.deep]\na = 1", "unknown key 'scorer.deep'"),
        ("scorer_api_key = 'k'", "unknown key 'scorer_api_key'"),
    ],
)  # fmt: skip
def test_unknown_keys_are_told_where_they_belong(load, text, fault):
    assert faults_of(load, f"{LEAST}{text}")[0].startswith(fault)


def test_a_key_in_the_file_is_refused_and_not_repeated(load):
    (fault,) = faults_of(load, f"{LEAST}[scorer]\napi_key = 'hunter2'")
    assert "environment variable" in fault
    assert "hunter2" not in fault


@pytest.mark.parametrize("value", ["5", "true", "[5]", "[[]]", "[]", '""', '{ kind = "jsonl" }', "1.5"])
def test_what_is_no_source_is_refused_in_our_own_words(load, value):
    (fault,) = faults_of(load, f"{LEAST}[data]\npool = {value}")
    assert fault.startswith("data.pool = ")
    assert "expected" in fault


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"run_id": "a b"}, "run_id = 'a b'"),
        ({"scorer_url": "127.0.0.1:8000"}, "scorer.url = '127.0.0.1:8000'"),
        ({"group_size": 1}, "group_size = 1"),
        ({"trackers": ["wand"]}, "tracking.trackers = ['wand']"),
        ({"temperature": 0}, "temperature = 0"),
        ({"width": 100}, "model.width = 100"),
        ({"dtype": "float16"}, "model.dtype = 'float16'"),
    ],
)
def test_limits_hold_without_a_file_too(settings, fault):
    with pytest.raises(SettingsError) as caught:
        TrainConfig(**{"run_id": "r", "output": "o"} | settings)
    (said,) = caught.value.faults
    assert said.startswith(fault)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('run_id = "r"\noutput = "o"', "scorer.url is missing, and strategy = 'cosine'"),
        (f'{LEAST}mode = "weight"', "scorer.url is missing, and strategy = 'random' with mode = 'weight'"),
        (f"{ASKING}mode = 'dynamic'", "mode = \"dynamic\" draws at random and strategy = 'cosine'"),
        (f"{ASKING}mode = 'filter'", "mode = \"filter\" draws at random and strategy = 'cosine'"),
        (
            f"{ASKING}strategy = 'posterior'\nmode = 'weight'{ANSWERED}",
            "strategy = 'posterior' chooses by pass rates alone",
        ),
        (
            f"{ASKING}strategy = 'posterior'\nscore_updates = true{ANSWERED}",
            "strategy = 'posterior' chooses by pass rates alone",
        ),
        (
            f"{ASKING}alignment = 'head'\nscore_updates = true{ANSWERED}",
            'alignment = "head" gives no sketches of whole gradients',
        ),
        (
            f"{LEAST}alignment = 'forward'\nmode = 'filter'",
            'alignment = "forward" gives no sketches of whole gradients',
        ),
        (
            'run_id = "r"\noutput = "o"\nmode = "weight"\nstrategy = "oracle"\n[scorer]\nurl = "http://h:1"',
            "strategy = 'oracle'",
        ),
        (f"{LEAST}mode = 'dynamic'\nbatch_validation = 8", "batch_validation = 8 joins the batches of mode"),
        (f"{LEAST}batch_validation = 40", "batch_validation = 40 is more than validation_problems = 32"),
        (f'{LEAST}[data]\nreward = "math_verify"', 'evaluation = "exact" counts'),
        (f'{LEAST}[model]\npath = "tiny-bytes"\nwarm_start = "a.jsonl"', "model.warm_start is given"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(load, text, fault):
    (said,) = faults_of(load, text)
    assert said.startswith(fault)


def test_the_key_comes_from_the_environment_and_is_not_shown(load):
    config = load(WHOLE, environ={"GRADALIGN_API_KEY": "hunter2", "OTHER": "s3cret"})
    assert config.scorer_api_key == "hunter2"
    assert "hunter2" not in repr(config)
    named = load(WHOLE, "scorer.api_key_env=OTHER", environ={"GRADALIGN_API_KEY": "hunter2", "OTHER": "s3cret"})
    assert named.scorer_api_key == "s3cret"
    assert load(WHOLE).scorer_api_key is None


@pytest.mark.parametrize("environ", [{}, {"MY_KEY": ""}])
def test_a_variable_that_is_named_must_be_set(load, environ):
    (fault,) = faults_of(load, WHOLE, "scorer.api_key_env=MY_KEY", environ=environ)
    assert "names 'MY_KEY', which is not set" in fault


CONFIGS = Path(__file__).parents[3] / "services/trainer/configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.name)
def test_every_shipped_file_can_be_used(path):
    assert load_config(path).rounds > 0

"""Groups of a file that is read as a stream: the same as those that are read at once, whatever the order and the faults."""

import json
import math
import random

import pyarrow
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import parquet
from responsefiles import responses, write_jsonl, write_list

from gradalign_trainer.datasets.records.schema import DataError
from gradalign_trainer.datasets.sources.remote import RemoteFile, source
from gradalign_trainer.rank.distributed import pool as module
from gradalign_trainer.rank.distributed.pool import Pool, Score
from gradalign_trainer.rank.steps.responses import read_responses
from gradalign_trainer.reporting.progress import no_progress

GROUPS, SAMPLES = 9, 4


@pytest.fixture(autouse=True)
def _small_transactions(monkeypatch):
    monkeypatch.setattr(module, "TOGETHER", 5)  # so that a file takes several


@pytest.fixture
def made(tmp_path):
    pools = []

    def make(file, known=None, place="pool.sqlite"):
        pools.append(Pool(tmp_path / place, file, known, no_progress))
        return pools[-1]

    yield make
    for each in pools:
        each.close()


def shuffled(groups=GROUPS):
    records = responses(groups, SAMPLES, seed=3)
    random.Random(0).shuffle(records)
    return records


def held_together(pool, file):
    """The pool against the plain reading of the same file."""
    plain = read_responses(file)
    assert pool.groups(0, len(pool)) == list(plain.groups)
    assert [tuple(each) for each in pool.rewards(0, len(pool))] == [(g.group_id, g.rewards) for g in plain.groups]
    assert (pool.records, pool.bad) == (plain.records, len(plain.bad))
    assert list(map(str, pool.bad_records())) == list(map(str, plain.bad))
    assert pool.without_signal() == sum(not group.signal for group in plain.groups)


@pytest.mark.parametrize("ending", ["json", "jsonl", "parquet"])
def test_groups_are_those_of_the_plain_reading(made, tmp_path, ending):
    file = tmp_path / f"train.{ending}"
    if ending == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(shuffled()), file)
    else:
        (write_list if ending == "json" else write_jsonl)(file, shuffled())
    pool = made(file)
    assert len(pool) == GROUPS
    held_together(pool, file)
    assert pool.groups(3, 5) == pool.groups(0, GROUPS)[3:5]
    assert [pool.offset(position) for position in range(GROUPS)] == list(range(0, GROUPS * SAMPLES, SAMPLES))


def test_ids_are_in_the_order_of_numbers_then_of_texts(made, tmp_path):
    ids = [10, 9, "b", "é", 100, "a", "0", "z\u0000", "10a"]
    records = [{**responses(1, 1, seed=1)[0], "group_id": each} for each in ids]
    file = write_jsonl(tmp_path / "ids.jsonl", records)
    held_together(made(file), file)


def test_bad_records_are_named_by_line_in_the_order_of_the_file(made, tmp_path):
    records = responses(GROUPS, SAMPLES, seed=3)
    lines = write_jsonl(tmp_path / "ok.jsonl", records).read_text().splitlines()
    lines[2] = '{"group_id": 0, "prompt": "Q", "respo'
    lines[5] = '{"group_id": 1, "sample_id": 9, "prompt": "Q", "response": "x"}'
    lines[7] = lines[6]
    lines[20] = json.dumps({**records[6], "sample_id": 2})  # the sample of line 7 a third time
    lines[30] = "[]"
    file = tmp_path / "bad.jsonl"
    file.write_text("\n".join(lines))
    pool = made(file)
    held_together(pool, file)
    assert [bad.place.number for bad in pool.bad_records()] == [3, 6, 8, 21, 31]


def test_samples_are_the_same_where_python_says_so(made, tmp_path):
    samples = [1, 1.0, True, "1", 2, math.nan, math.nan, math.inf, None, None, [1], {"a": 1}, 0.5, "0.5", math.inf]
    records = [{**responses(1, 1, seed=1)[0], "sample_id": each} for each in samples]
    file = write_jsonl(tmp_path / "samples.jsonl", records)
    pool = made(file)
    assert pool.bad == 4
    assert pool.groups(0, 1) == list(read_responses(file).groups)


def test_half_a_surrogate_pair_is_a_bad_record(made, tmp_path):
    lines = write_jsonl(tmp_path / "ok.jsonl", responses(2, 2, seed=1)).read_text().splitlines()
    lines[1] = lines[1].replace("Q0", r"Q\ud800")
    (tmp_path / "half.jsonl").write_text("\n".join(lines))
    pool = made(tmp_path / "half.jsonl")
    (bad,) = pool.bad_records()
    assert "half.jsonl:2: prompt" in str(bad)
    assert "half of a surrogate pair" in str(bad)


def test_groups_that_are_not_known_are_left_out_and_count_in_no_offset(made, tmp_path):
    file = write_jsonl(tmp_path / "train.jsonl", shuffled())
    pool = made(file, known={1, 2, 7})
    assert [each.group_id for each in pool.groups(0, 9)] == [1, 2, 7]
    assert (len(pool), pool.left_out, pool.responses) == (3, GROUPS - 3, 3 * SAMPLES)
    assert pool.offset(2) == 2 * SAMPLES
    assert list(pool.ids()) == list(range(GROUPS))


def test_a_whole_pool_is_opened_again_and_half_of_one_is_made_anew(made, tmp_path):
    file = write_jsonl(tmp_path / "train.jsonl", shuffled())
    made(file).close()
    place = tmp_path / "pool.sqlite"
    kept = place.stat().st_ino
    held_together(made(file), file)
    assert place.stat().st_ino == kept
    place.write_bytes(place.read_bytes()[:5000])
    held_together(made(file), file)
    place.write_bytes(b"no database at all")
    held_together(made(file), file)


def test_a_file_of_which_nothing_fits_ends_with_its_lines(made, tmp_path):
    (tmp_path / "none.jsonl").write_text('{"group_id": -1}\n{"group_id": 1}\n')
    with pytest.raises(DataError, match=r"none of its 2 records is a scored response.\n.*none.jsonl:1: group_id = -1"):
        made(tmp_path / "none.jsonl")


def test_scores_keep_their_bits_and_give_the_best(made, tmp_path):
    file = write_jsonl(tmp_path / "train.jsonl", shuffled())
    given = [Score(0, -0.0, -0.0, 0.1), Score(3, 0.5, None, -0.0), Score(7, 0.5, 2.0, 1e-300), Score(8, 1.0, 1.0, 0.0)]
    for _ in range(2):  # those of an earlier try are gone
        pool = made(file)
        pool.begin_scores()
        pool.score(given)
        assert repr(list(pool.scores(0, 9).values())) == repr(given)
    assert pool.scores(3, 7) == {3: given[1]}
    assert pool.best(3) == [8, 3, 7]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_file_is_read_by_its_url(made, tmp_path, ending):
    local = tmp_path / f"train.{ending}"
    if ending == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(shuffled()), local)
    else:
        local.write_text("".join(json.dumps(record) + "\n" for record in shuffled()) + "[1]\n")
    MemoryFileSystem().pipe(f"/pool/train.{ending}", local.read_bytes())
    remote = source(f"memory://pool/train.{ending}")
    assert isinstance(remote, RemoteFile)
    there, here = made(remote, place="there.sqlite"), made(local)
    assert there.groups(0, GROUPS) == here.groups(0, GROUPS)
    assert [bad.place.file for bad in there.bad_records()] == [str(remote)] * here.bad
    assert remote.identity() != ""


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("memory://pool/nowhere.jsonl", "memory://pool/nowhere.jsonl is no file"),
        ("nonsense://pool/train.jsonl", "nonsense://pool/train.jsonl cannot be reached"),
    ],
)
def test_a_url_of_nothing_ends_with_a_reason(made, url, words):
    with pytest.raises(DataError, match=words):
        made(source(url))

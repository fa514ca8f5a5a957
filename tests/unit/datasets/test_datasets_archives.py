"""Compressed JSONL: gzip and Zstandard by their first bytes, whatever the ending, and what is said of broken ones."""

import bz2
import gzip
import json
import lzma

import pyarrow
import pytest

from gradalign_trainer.datasets import DataError, load_problems
from gradalign_trainer.rank.steps.outputs import read_problem_file
from gradalign_trainer.rank.steps.responses import read_responses

ROWS = [{"id": f"p{number}", "prompt": f"{number}+1=", "answer": str(number + 1)} for number in range(3000)]
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def zstd(data):
    return pyarrow.Codec("zstd").compress(data, asbytes=True)


def ids(spec):
    return [problem.problem_id for problem in load_problems(spec).problems]


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
@pytest.mark.parametrize(
    "name", ["a.jsonl.gz", "a.jsonl.zst", "a.json.gz", "a.json.zst", "a.ndjson.gz", "a.gz", "a.zst", "a.jsonl"]
)
def test_what_is_compressed_is_read_by_what_it_holds(tmp_path, pack, name):
    (tmp_path / name).write_bytes(pack(TEXT))
    assert ids(str(tmp_path / name)) == [row["id"] for row in ROWS]
    assert ids({"path": str(tmp_path / name), "limit": 2}) == ["p0", "p1"]


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_archives_may_be_put_together(tmp_path, pack):
    (tmp_path / "a.jsonl.gz").write_bytes(pack(TEXT[: len(TEXT) // 2]) + pack(TEXT[len(TEXT) // 2 :]))
    assert len(ids(str(tmp_path / "a.jsonl.gz"))) == 3000


def test_an_ending_that_lies_does_no_harm(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(TEXT)
    assert len(ids(str(tmp_path / "a.jsonl.gz"))) == 3000
    (tmp_path / "empty.jsonl.gz").write_bytes(b"")
    with pytest.raises(DataError, match="there is no problem in"):
        ids(str(tmp_path / "empty.jsonl.gz"))


def test_a_folder_s_compressed_shards_are_read(tmp_path):
    half = TEXT.splitlines(keepends=True)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"".join(half[:1000])))
    (tmp_path / "b.jsonl").write_bytes(b"".join(half[1000:2000]))
    (tmp_path / "c.ndjson.zst").write_bytes(zstd(b"".join(half[2000:])))
    assert ids(f"jsonl:{tmp_path}") == [row["id"] for row in ROWS]


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_an_archive_that_is_cut_short_is_named_with_its_line(tmp_path, pack):
    whole = pack(TEXT)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        DataError, match=r"a\.jsonl\.gz:\d+: the file cannot be read from here on: .*copy it anew"
    ) as caught:
        load_problems({"path": str(path), "bad_records": "skip"})
    assert 1 <= int(str(caught.value).split(":")[1]) <= 3000


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_an_archive_that_is_damaged_at_its_head_is_named(tmp_path, pack):
    whole = pack(TEXT)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(whole[:4] + b"\xff" * 12 + whole[16:])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz:1: the file cannot be read from here on"):
        ids(str(path))


@pytest.mark.parametrize(("kind", "pack"), [("bzip2", bz2.compress), ("xz", lzma.compress)])
def test_other_archives_are_refused_by_name(tmp_path, kind, pack):
    (tmp_path / "a.jsonl").write_bytes(pack(TEXT))
    with pytest.raises(DataError, match=rf"a\.jsonl is a {kind} archive; .* Unpack it"):
        ids(str(tmp_path / "a.jsonl"))


def test_compressed_parquet_is_of_no_kind():
    with pytest.raises(Exception, match="of no known kind"):
        ids("a.parquet.gz")


def test_progress_counts_bytes_on_the_disk(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(TEXT))
    told = []

    class Tells:
        def __init__(self, description, total):
            self.total = total

        def __enter__(self):
            return told.append

        def __exit__(self, *_):
            told.append(-self.total)

    load_problems(str(tmp_path / "a.jsonl.gz"), progress=Tells)
    assert sum(told) == 0


RESPONSES = [
    {"group_id": group, "sample_id": sample, "prompt": "Q", "response": " a", "is_correct": sample == 0}
    for group in range(3)
    for sample in range(2)
]


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
@pytest.mark.parametrize("as_list", [True, False])
def test_responses_may_be_compressed(tmp_path, pack, as_list):
    text = json.dumps(RESPONSES, indent=1) if as_list else "\n".join(map(json.dumps, RESPONSES))
    (tmp_path / "r.json.gz").write_bytes(pack(text.encode()))
    assert [group.group_id for group in read_responses(tmp_path / "r.json.gz").groups] == [0, 1, 2]
    whole = pack(text.encode() * 50)
    (tmp_path / "r.json.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"r\.json\.gz:\d+: the file cannot be read from here on"):
        read_responses(tmp_path / "r.json.gz")


def test_problems_of_a_ranking_may_be_compressed(tmp_path):
    lines = "\n".join(json.dumps({"extra_info": {"index": float(index)}}) for index in range(3))
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    assert list(read_problem_file(tmp_path / "p.jsonl.gz").records) == [0, 1, 2]

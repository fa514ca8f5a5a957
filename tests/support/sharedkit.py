"""`gradalign rank` by one process and by many, in processes of their own, for tests that hold their files together."""

import os
import subprocess
import sys
import time

import psutil


def command(files, out, *flags, train="train.json"):
    """Arguments of a ranking of `responsefiles.save_files`, on one thread, so that bits do not depend on who runs it."""
    return [
        *("rank", "--model", str(files / "model"), "--train", str(files / train), "--out", str(out)),
        *("--validation", str(files / "val.json"), "--device", "cpu", "--dim", "512", "--threads", "1", *flags),
    ]


def started(arguments, *launcher):
    """A ranking in a process of its own; the launcher is that of torchrun, or none."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_raylet_start_wait_time_s": "300"}
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "gradalign", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
    )


def torchrun(ranks):
    """The launcher of so many ranks on this machine."""
    return ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks))


def said(process, limit=500):
    """What an ended ranking said; it must have ended well."""
    text, _ = process.communicate(timeout=limit)
    assert process.returncode == 0, text[-4000:]
    return " ".join(text.split())


def shards(out):
    """The batches that a ranking has measured so far."""
    return sorted(out.with_name(f"{out.name}.shards").glob("train/*.npz"))


def wait_for_shards(process, out, count, limit=500):
    """Wait until so many batches are measured, while the ranking goes on."""
    deadline = time.monotonic() + limit
    while len(shards(out)) < count:
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def processes_called(start, of):
    """The processes below one whose command begins so."""
    found = []
    for process in psutil.Process(of).children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith(start):
                found.append(process)
        except psutil.Error:
            continue
    return found


def same_files(one, other):
    """Whether two folders hold the same files, to the byte."""
    return contents(one) == contents(other)


def contents(folder):
    """What the files of a folder hold, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

"""Makers of score requests for the tests of the scorer's compute, and the same arithmetic in numpy and float64."""

import numpy as np
import torch

from gradalign import Projection, ScoreRequest, SketchMatrix
from gradalign_scorer.ranking.alignment import SketchRows
from gradalign_scorer.ranking.scoring import Evidence, score

CPU = torch.device("cpu")


def matrix(sketches, dtype="float32"):
    """Sketches [n, dim] of any array in the wire's dtype."""
    tensor = torch.as_tensor(np.asarray(sketches, dtype=np.float64))
    if dtype == "int8":
        return SketchMatrix.of(tensor, dtype)
    return SketchMatrix.of(tensor.to(getattr(torch, dtype)))


def rows_of(*parts, dtype="float32"):
    """The rows of one or several arrays, each a matrix of its own."""
    return SketchRows([matrix(part, dtype) for part in parts])


def unit(vector):
    """A validation gradient of length 1 along a vector; float32 [dim]."""
    vector = np.asarray(vector, dtype=np.float64)
    return torch.tensor(vector / np.linalg.norm(vector)).float()


def request_of(sketches, ids=None, *, dtype="float32", run_id="run", policy_version=0, **columns):
    """A score request of sketches [n, dim]; ids are p0, p1, ... where not given."""
    sketches = sketches if isinstance(sketches, SketchMatrix) else matrix(sketches, dtype)
    return ScoreRequest(
        run_id=run_id,
        policy_version=policy_version,
        projection=Projection(dim=sketches.dim, seed=0, parameters="ab" * 32),
        problem_ids=[f"p{i}" for i in range(sketches.rows)] if ids is None else list(ids),
        sketches=sketches,
        **columns,
    )


def rank(sketches, strategy="cosine", *, validation=None, sums=None, counts=None, spread=None, **request):
    """What the compute thread makes of a request; without evidence of earlier requests where none is given."""
    made = request_of(sketches, **request)
    zeros = np.zeros(len(made.problem_ids))
    evidence = Evidence(zeros if sums is None else sums, zeros if counts is None else counts, spread)
    return score(made, strategy, validation, evidence, CPU)


def by_id(scored, column="priorities"):
    """One column of a ranking as a map from problem id."""
    return dict(zip(scored.ids, getattr(scored, column).tolist(), strict=True))


def cosines(sketches, vector):
    """cos(row, vector) in float64, [n]; 0 for a zero row."""
    rows = np.asarray(sketches, dtype=np.float64)
    norms = np.linalg.norm(rows, axis=1)
    vector = np.asarray(vector, dtype=np.float64)
    return rows @ vector / np.linalg.norm(vector) / np.where(norms > 0, norms, 1.0)

"""A training run that is not one: rounds of made-up gradients, posted to a scorer as a trainer would.

python tests/support/liverun.py http://127.0.0.1:8000 --run demo --rounds 200 --pause 1
"""

import argparse
import time

import numpy as np

from gradalign import Client, Projection

PROJECTION = Projection(dim=4096, seed=3, parameters="cd" * 32)


class LiveRun:
    """Problems whose alignments rise as the policy learns, some without a signal.

    Args:
        client: of the run.
        problems: in the pool.
        spread: standard deviation of the exact alignments.
        seed: of everything.
    """

    def __init__(self, client, *, problems=400, spread=0.08, seed=0):
        self.client, self.rng, self.version = client, np.random.default_rng(seed), 0
        self.ids = [f"{topic}/{i:04d}" for topic in ("algebra", "geometry") for i in range(problems // 2)]
        self.cosines = self.rng.normal(0.05, spread, problems)
        self.rates = np.clip(self.rng.normal(0.45, 0.3, problems) + self.cosines, 0, 1)
        self.direction = self._unit(1)[0]

    def _unit(self, rows):
        vectors = self.rng.standard_normal((rows, PROJECTION.dim))
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def _sketches(self, cosines):
        rows = self._unit(len(cosines))
        return cosines[:, None] * self.direction + np.sqrt(1 - cosines[:, None] ** 2) * rows

    def refresh(self):
        """A validation gradient of 32 problems."""
        rows = self._sketches(self.rng.normal(0.45, 0.1, 32)).astype(np.float16)
        names = [f"trusted/{i:02d}" for i in range(32)]
        return self.client.refresh_validation(names, rows, policy_version=self.version, projection=PROJECTION)

    def round(self, *, pool=96, select=24):
        """Score a pool, select of it, and take two steps of the policy."""
        pool = min(pool, len(self.ids))
        chosen = self.rng.choice(len(self.ids), pool, replace=False)
        self.rates[chosen] = np.clip(self.rates[chosen] + self.rng.normal(0.01, 0.04, pool), 0, 1)
        rates = np.round(self.rates[chosen] * 8) / 8
        rows = self._sketches(np.clip(self.cosines[chosen] + self.rng.normal(0, 0.02, pool), -0.9, 0.9))
        rows[(rates == 0) | (rates == 1)] = 0
        ranking = self.client.score(
            [self.ids[i] for i in chosen], rows.astype(np.float16), policy_version=self.version, projection=PROJECTION,
            pass_rates=rates.tolist(), select=select,
        )  # fmt: skip
        self.version += 2
        return ranking

    def rounds(self, count, *, refresh_every=5, pause=0.0):
        """Many of them."""
        for i in range(count):
            if i % refresh_every == 0:
                self.refresh()
            self.round()
            time.sleep(pause)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--run", default="made-up")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between rounds")
    options = parser.parse_args()
    with Client(options.url, run_id=options.run) as client:
        LiveRun(client).rounds(options.rounds, pause=options.pause)


if __name__ == "__main__":
    main()

"""A run of products: problems, their rollouts' products, features, and a client that sends them."""

import numpy as np

COUNT, ROLLOUTS = 64, 6
RNG = np.random.default_rng(5)
FEATURES = RNG.standard_normal((COUNT, 3))
PRODUCTS = (np.tanh(FEATURES[:, :1]) + 0.3 * RNG.standard_normal((COUNT, ROLLOUTS))) / ROLLOUTS
PRODUCTS[7] = 0.0
SUMS = PRODUCTS.sum(axis=1)
IDS = [f"p{i}" for i in range(COUNT)]
TRUSTED = [f"v{i}" for i in range(5)]
GOOD = {"policy_version": 1, "products": PRODUCTS, "products_version": 1}


def refresh(client, **changes):
    """Products of five validation problems that add up to the length."""
    fields = {"policy_version": 1, "products": np.full((5, 4), 0.1), "lengths": 2.0, **changes}
    return client.refresh_validation(TRUSTED, **fields)

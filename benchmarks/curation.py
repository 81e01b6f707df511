"""The noise of scores from their consensus (HOC) on 100,000 rows with a known transition matrix, K = 6.

The peer is the least-squares fit of single, pair and triple counts by 1,500 Adam steps, as the method's
official code does it. Both count the same triples. The ratio is of seconds; `error` is the largest L1
distance between a row of the estimated matrix and the planted one.
"""

from __future__ import annotations

import harness
import numpy as np

from lm_mixup.augment.curation.hoc import count_triples, fit_consensus

K = 6


def planted(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores [N], two neighbours of each row that share its true score [N, 2], and the matrix [K, K]."""
    generator = np.random.default_rng(seed)
    transition = np.full((K, K), 0.06) + np.diag(generator.uniform(0.5, 0.7, K))
    transition /= transition.sum(axis=1, keepdims=True)
    true = np.sort(generator.choice(K, rows, p=generator.dirichlet(np.full(K, 8.0))))
    drawn = generator.random(rows)[:, None] < transition[true].cumsum(axis=1)
    scores = drawn.argmax(axis=1)
    neighbors = np.empty((rows, 2), np.int64)
    for label in range(K):
        same = np.flatnonzero(true == label)
        steps = 1 + generator.choice(len(same) - 1, 2, replace=False)
        neighbors[same] = np.stack([np.roll(same, step) for step in steps], axis=1)
    return scores, neighbors, transition


def peer(scores: np.ndarray, neighbors: np.ndarray) -> np.ndarray:
    import torch

    counts = count_triples(np.column_stack([scores, scores[neighbors]]), K)
    c3 = torch.from_numpy(counts / counts.sum())
    c2, c1 = c3.sum(dim=2), c3.sum(dim=(1, 2))
    transition = (3 * torch.eye(K, dtype=torch.float64)).requires_grad_()
    prior = torch.zeros(K, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([transition, prior], lr=0.1)
    for _ in range(1_500):
        t, p = transition.softmax(dim=1), prior.softmax(dim=0)
        loss = ((p @ t - c1) ** 2).sum() + ((torch.einsum("i,ij,ik->jk", p, t, t) - c2) ** 2).sum()
        loss = loss + ((torch.einsum("i,ij,ik,il->jkl", p, t, t, t) - c3) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return transition.softmax(dim=1).detach().numpy()


def error(found: np.ndarray, true: np.ndarray) -> float:
    return round(float(np.abs(found - true).sum(axis=1).max()), 4)


def main() -> None:
    args = harness.arguments(__doc__.splitlines()[0])
    rows = 20_000 if args.quick else 100_000
    scores, neighbors, true = planted(rows)
    our_seconds, (ours, _) = harness.timed(
        lambda: fit_consensus(count_triples(np.column_stack([scores, scores[neighbors]]), K)), 3
    )
    peer_seconds, theirs = harness.timed(lambda: peer(scores, neighbors), 3)
    harness.finish(
        "curation",
        {"rows": rows, "classes": K},
        {"seconds": round(our_seconds, 3), "error": error(ours, true)},
        {"seconds": round(peer_seconds, 3), "error": error(theirs, true)},
        peer_seconds / our_seconds,
        args.json,
    )


if __name__ == "__main__":
    main()

"""What the offline judge's ratings are worth, and the fit of its constants.

Held out are every fifth of 20,000 Alpaca rows with the scores of three LLM judges, and 600 instructions
answered by two models; the fit reads the other rows, less those that share a text with the pairs. The figures
are those of the constants in the code. The fit is printed beside them, so that the one can be compared with
the other (`--quick` measures on every twentieth row and fits nothing).

The peer is the same judge without relevance: what can be read off a text alone. The ratio is of the share of
right answers preferred to another row's.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
import numpy as np
from scipy.optimize import lsq_linear
from scipy.stats import spearmanr

from lm_mixup.chat import offline_judge, relevance
from lm_mixup.chat.offline_judge import FEATURES, QUALITIES, features, rate_row

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
BY_HAND = ("asked", "vague", "repetition", "looped", "truncated", "refusal", "mirrored", "irrelevant")
EMBEDDED = 4_000  # of the rows fitted on: for the logit, and for the cuts, which relevance shifts
FULL_AT = {"rarity": 75, "informativeness": 75, "overall": 62}
QUANTILES = (3, 7, 12, 20, 30, 42, 58, 78, 93)
RIDGE = 5.0
REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "As an AI language model, I am not able to answer this question.",
)
CONSTANTS = (
    "Yes.",
    "It depends on many factors, such as time, place and the people involved. It is important to consider all"
    " of them carefully, because each case is different and there is no single right answer.",
    "The water cycle describes how water evaporates from the surface of the earth, rises into the atmosphere,"
    " cools and condenses into clouds, and falls back to the surface as rain or snow. For example, the sun"
    " heats the oceans, therefore vapour rises. Rivers then carry the water back to the sea.",
    "The capital of Kenya is Nairobi. Kenya has about 53 million people and pays in the Kenyan shilling.",
)

Row = tuple[str, str]


class Vectors:
    """Embeds texts as the judge does, and keeps the vectors in a file if one is named."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, np.ndarray] = {}
        if path and path.exists():
            with np.load(path) as held:
                self._known = dict(zip(held["keys"].tolist(), held["vectors"], strict=True))
        self._relevance: relevance.Relevance | None = None
        self.seconds, self.embedded = 0.0, 0

    def cosines(self, rows: Sequence[Row]) -> list[float]:
        prompts = self.of([prompt for prompt, _ in rows])
        answers = self.of([relevance.without_copied(prompt, completion) for prompt, completion in rows])
        return [float(value) for value in np.einsum("nd,nd->n", prompts, answers)]

    def of(self, texts: Sequence[str]) -> np.ndarray:
        keys = [
            hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
            for text in texts
        ]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._known}
        listed = list(new.items())
        for start in range(0, len(listed), 1000):
            some = listed[start : start + 1000]
            self._relevance = self._relevance or relevance.Relevance()
            begun = time.process_time()  # on one thread: what else the machine does is not in it
            found = self._relevance.embed([text for _, text in some])
            self.seconds += time.process_time() - begun
            self.embedded += len(some)
            self._known.update(zip([key for key, _ in some], found, strict=True))
            self.save()
        return np.stack([self._known[key] for key in keys])

    def save(self) -> None:
        if self._path:
            keys = np.array(list(self._known))
            np.savez(self._path, keys=keys, vectors=np.stack(list(self._known.values())))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def expected(rows: Sequence[Row], cosines: Sequence[float] | None) -> np.ndarray:
    """The ratings before rounding, with relevance or without."""
    listed = cosines if cosines is not None else [None] * len(rows)
    return np.array([rate_row(*row, cosine)[1] for row, cosine in zip(rows, listed, strict=True)])


def share(better: np.ndarray, worse: np.ndarray) -> float:
    """How often the better is ahead; a tie is none."""
    return round(float((better > worse).mean()), 4)


def other_digits(text: str) -> str:
    """Each digit replaced by the one that is 3 higher, and 9 by 2."""
    return re.sub(r"\d", lambda found: str((int(found[0]) + 3) % 10), text)


def looped(text: str) -> str:
    return " ".join([text] * 3)


def measure(
    held: Sequence[dict[str, Any]], pairs: Sequence[dict[str, Any]], vectors: Vectors | None
) -> dict[str, Any]:
    """The figures; without vectors those of the judge that looks at no relevance."""

    def rated(rows: Sequence[Row]) -> np.ndarray:
        return expected(rows, vectors.cosines(rows) if vectors else None)

    rows = [(row["prompt"], row["completion"]) for row in held]
    own = rated(rows)
    judges = sorted(held[0]["scores"])
    means = [np.mean(list(row["scores"].values())) for row in held]
    figures: dict[str, Any] = {
        "spearman_expected": round(float(spearmanr(own, means)[0]), 4),
        "spearman_overall": round(float(spearmanr(np.round(own), means)[0]), 4),
    }
    for judge in judges:
        figures[f"spearman_{judge[:12]}"] = round(
            float(spearmanr(own, [row["scores"][judge] for row in held])[0]), 4
        )
    high, low = (rated([(pair["prompt"], pair[side]) for pair in pairs]) for side in ("high", "low"))
    figures["pairs_high_over_low"] = share(high, low)
    decided = np.round(high) != np.round(low)
    figures["pairs_by_overall"] = share(np.round(high), np.round(low))
    figures["pairs_by_overall_decided"] = share(np.round(high)[decided], np.round(low)[decided])
    length = np.array([[len(pair["high"]), len(pair["low"])] for pair in pairs])
    figures["pairs_longer"] = share(length[:, 0], length[:, 1])
    for step in (137, 331):
        others = [(row[0], rows[(place + step) % len(rows)][1]) for place, row in enumerate(rows)]
        figures[f"right_over_other_{step}"] = share(own, rated(others))
    mixed = [(pair["prompt"], pairs[(place + 7) % len(pairs)]["high"]) for place, pair in enumerate(pairs)]
    figures["right_over_gpt4s_other"] = share(low, rated(mixed))
    some = rows[::4]
    right = own[::4]
    figures["right_over_echo"] = share(right, rated([(prompt, prompt) for prompt, _ in some]))
    behind = [
        (prompt, f"{prompt} {some[(place + 7) % len(some)][1]}") for place, (prompt, _) in enumerate(some)
    ]
    figures["right_over_echo_and_other"] = share(right, rated(behind))
    figures["right_over_loop"] = share(right, rated([(prompt, looped(text)) for prompt, text in some]))
    for number, text in enumerate(REFUSALS):
        figures[f"right_over_refusal_{number}"] = share(right, rated([(prompt, text) for prompt, _ in some]))
    for number, text in enumerate(CONSTANTS):
        figures[f"right_over_constant_{number}"] = share(right, rated([(prompt, text) for prompt, _ in some]))
    numbered = [row for row in some if re.search(r"\d", row[1])]
    before = rated(numbered)
    after = rated([(prompt, other_digits(text)) for prompt, text in numbered])
    figures["digits_changed_rating_kept"] = round(float((np.round(before) == np.round(after)).mean()), 4)
    figures["digits_changed_preferred_right"] = share(before, after)
    figures["digits_changed_preferred_wrong"] = share(after, before)
    return figures


def fit_relevance(rows: Sequence[Row], vectors: Vectors) -> dict[str, float]:
    """The logistic regression of `relevance.LOGIT`."""
    from sklearn.linear_model import LogisticRegression

    seen, labels, weights = [], [], []
    for step in (0, 137, 333, 751):
        mixed = [(row[0], rows[(place + step) % len(rows)][1]) for place, row in enumerate(rows)]
        for row, cosine in zip(mixed, vectors.cosines(mixed), strict=True):
            seen.append(relevance.evidence(cosine, *offline_judge.shared_counts(*row)))
        labels += [step == 0] * len(rows)
        weights += [3.0 if step == 0 else 1.0] * len(rows)
    found = LogisticRegression(C=1.0, max_iter=2000).fit(np.array(seen), labels, sample_weight=weights)
    names = ("cosine", "shared", "length", "asked")
    fitted = {"intercept": float(found.intercept_[0])} | dict(
        zip(names, found.coef_[0].tolist(), strict=True)
    )
    return {name: round(value, 2) for name, value in fitted.items()}


def fit_weights(values: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """The weights of `overall` that are not set by hand: ridge regression, each held to its sign.

    Args:
        values: Features [N, F].
        scores: Mean scores of the judges [N].
    """
    weights = QUALITIES["overall"]
    free = [name for name in weights if name not in BY_HAND]
    place = {name: FEATURES.index(name) for name in FEATURES}
    target = scores - sum(weights[name] * values[:, place[name]] for name in BY_HAND)
    inputs = values[:, [place[name] for name in free]]
    centred, goal = inputs - inputs.mean(axis=0), target - target.mean()
    bounds = (
        [0.0 if weights[n] >= 0 else -np.inf for n in free],
        [np.inf if weights[n] >= 0 else 0.0 for n in free],
    )
    stacked = np.vstack([centred, math.sqrt(RIDGE) * np.eye(len(free))])
    found = lsq_linear(stacked, np.concatenate([goal, np.zeros(len(free))]), bounds)
    return dict(zip(free, np.round(found.x, 2).tolist(), strict=True))


def fit(rated: Sequence[dict[str, Any]], vectors: Vectors) -> dict[str, Any]:
    """The constants anew: `LOGIT`, and under the one in the code the weights, `FULL` and `CUTS`.

    The weights are those of the judge without relevance, whose weight is set on top: fitted together, the
    other features would make up for what relevance takes from right answers of unlike words.
    """
    rows = [(row["prompt"], row["completion"]) for row in rated]
    some = rows[:EMBEDDED]
    logit = fit_relevance(some, vectors)
    listed = [features(*row) for row in rows]
    values = np.array([list(one.values()) for one in listed])
    scores = np.array([np.mean(list(row["scores"].values())) for row in rated])
    weights = dict(QUALITIES) | {"overall": QUALITIES["overall"] | fit_weights(values, scores)}
    whole = [features(*row, cosine) for row, cosine in zip(some, vectors.cosines(some), strict=True)]
    full, cuts = {}, {}
    for quality, chosen in weights.items():
        gained = [sum(w * one[name] for name, w in chosen.items() if w > 0) for one in listed]
        full[quality] = (
            round(float(np.percentile(gained, FULL_AT[quality])), 2) if quality in FULL_AT else 0.0
        )
        found = [offline_judge.worth(chosen, full[quality], one) for one in whole]
        cuts[quality] = np.percentile(found, QUANTILES).round(3).tolist()
    return {"rows": len(rows), "logit": logit, "overall": weights["overall"], "full": full, "cuts": cuts}


def main() -> None:
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=SHARED, help="folder of the two files")
    parser.add_argument("--vectors", type=Path, help="file (.npz) that keeps the vectors for the next time")
    parser.add_argument("--fit-alone", action="store_true", help="print the fit and measure nothing")
    args = parser.parse_args()
    vectors = Vectors(args.vectors)
    rated, pairs = read(args.data / "alpaca_rated_20k.jsonl"), read(args.data / "pairs_600.jsonl")
    held = rated[:: 20 if args.quick else 5]
    config: dict[str, Any] = {"held_out": len(held), "pairs": len(pairs)}
    if not args.quick:
        texts = {pair[side] for pair in pairs for side in ("prompt", "low", "high")}
        fitted_on = [
            row
            for place, row in enumerate(rated)
            if place % 5 and row["prompt"] not in texts and row["completion"] not in texts
        ]
        config["fit"] = fit(fitted_on, vectors)
        if args.fit_alone:
            print(json.dumps(config["fit"], indent=1))
            return
    ours = measure(held, pairs, vectors)
    peer = measure(held, pairs, None)
    if vectors.embedded:
        ours["texts_embedded_per_core_s"] = round(vectors.embedded / vectors.seconds, 1)
    ratio = ours["right_over_other_137"] / peer["right_over_other_137"]
    harness.finish("offline_judge", config, ours, peer, ratio, args.json)


if __name__ == "__main__":
    main()

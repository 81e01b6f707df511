"""The pace that a server grants, found from its replies and refusals.

Refusals that end when the pace is cut come from the pace. A share of them that stays (other users of the
account, a random fault) does not, and cutting further would only lose throughput. So the pace is cut to what
was granted; what is refused at a pace well below one that was granted lately counts as the server's own
share, and only more than that cuts the pace again. Otherwise the pace rises by a twentieth in a window.
"""

from __future__ import annotations

import math
from collections import deque

_WINDOW_S, _WINDOW_OUTCOMES = 1.0, 16
_FIRST = 20.0  # requests per second after a first refusal, when nothing is known
_LEAST = 0.1


class Pace:
    """Requests per second, without bound until the first refusal."""

    def __init__(self) -> None:
        self.rate = math.inf
        self._recent: deque[bool] = deque(maxlen=64)
        self._since = 0.0
        self._granted = self._refused = 0
        self._own_share = 0.0  # of refusals, whatever the pace
        self._best = 0.0  # most requests per second that were granted lately
        self._calm_windows = 0
        self._granted_since_cut = True

    @property
    def gap(self) -> float:
        """Seconds between two requests."""
        return 0.0 if math.isinf(self.rate) else 1 / self.rate

    @property
    def mostly_granted(self) -> bool:
        """Whether refusals come one by one among replies, and not because the server has stopped."""
        granted = sum(self._recent)
        return granted >= 20 and granted >= 0.6 * len(self._recent)

    def granted(self, now: float) -> None:
        """A request was served."""
        self._recent.append(True)
        self._granted += 1
        self._granted_since_cut = True
        if math.isfinite(self.rate) and not self.mostly_granted:
            self.rate *= 1.05
        self._close(now)

    def refused(self, now: float) -> None:
        """A request met the rate limit."""
        self._recent.append(False)
        self._refused += 1
        if not self.mostly_granted:
            if math.isinf(self.rate):
                self.rate = _FIRST
            elif self._granted_since_cut:  # a server that has stopped says nothing about the pace
                self.rate = max(_LEAST, self.rate / 2)
            self._granted_since_cut = False
        self._close(now)

    def _close(self, now: float) -> None:
        """Ends a window that is long enough, and sets the pace by it."""
        if not self._since:
            self._since = now
        seconds, outcomes = now - self._since, self._granted + self._refused
        if seconds < _WINDOW_S or outcomes < _WINDOW_OUTCOMES:
            return
        granted, share = self._granted / seconds, self._refused / outcomes
        self._since, self._granted, self._refused = now, 0, 0
        if not self.mostly_granted or (math.isinf(self.rate) and not share):
            return
        self._best = max(0.97 * self._best, granted)
        if self.rate < 0.8 * self._best:  # it has granted more than that: these refusals are its own
            self._own_share += 0.5 * (share - self._own_share)
        else:
            self._own_share = min(0.98 * self._own_share, 0.8 * self._own_share + 0.2 * share)
        own = self._own_share
        spread = math.sqrt(max(own, 0.02) * (1 - own) / outcomes)
        if share - own > 0.02 + 2 * spread:
            self._calm_windows = 0
            self.rate = max(_LEAST, 0.95 * granted / (1 - own))
            return
        self._calm_windows += 1
        if math.isfinite(self.rate):
            slow = (
                1 if own > 0.02 else 5
            )  # windows; where refusals are not of the pace, there is less to fear
            faster = self.rate * (1.25 if self._calm_windows > slow else 1.05)
            # Where the pace is not what holds the requests back, it need not run away from them.
            self.rate = max(self.rate, min(faster, 2 * outcomes / seconds))

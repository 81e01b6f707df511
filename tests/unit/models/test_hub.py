"""Models of the Hub: patience while it is busy, none where waiting cannot help, one download at a time."""

from __future__ import annotations

from pathlib import Path

import httpx2
import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from lm_mixup.core.errors import InputError
from lm_mixup.models import hub


def refused(status: int, kind: type[HfHubHTTPError] = HfHubHTTPError) -> HfHubHTTPError:
    request = httpx2.Request("GET", "https://huggingface.co/api/models/org/name/revision/main")
    return kind(f"{status} for you", response=httpx2.Response(status, request=request))


def not_cached(cause: Exception) -> LocalEntryNotFoundError:
    """What `snapshot_download` makes of an error where the cache lacks the files."""
    error = LocalEntryNotFoundError("cannot find the snapshot")
    error.__cause__ = cause
    return error


class Hub:
    """Stands for `snapshot_download`: raises one error after another, then gives the folder."""

    def __init__(self, folder: Path, errors: list[Exception]) -> None:
        self.folder, self.errors, self.asked = folder, errors, 0

    def __call__(self, name: str, *, revision: str | None, ignore_patterns: list[str]) -> Path:
        assert (name, revision) == ("org/name", "v1")
        assert "*.bin" in ignore_patterns
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.folder


@pytest.fixture
def waits(monkeypatch, tmp_path) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(hub.time, "sleep", slept.append)
    monkeypatch.setenv("LM_MIXUP_CACHE", str(tmp_path / "cache"))
    return slept


def test_a_busy_hub_is_asked_again_later_each_time(monkeypatch, tmp_path, waits):
    busy = Hub(tmp_path, [refused(429), not_cached(refused(503)), refused(429)])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", busy)
    assert hub.fetch_model("org/name", "v1") == str(tmp_path)
    assert waits == [10, 30, 60]


def test_a_hub_that_stays_busy_is_a_refusal_in_one_line(monkeypatch, tmp_path, waits):
    busy = Hub(tmp_path, [refused(429) for _ in range(9)])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", busy)
    with pytest.raises(InputError, match=r"^grpo.model org/name \(no such folder here.*429 for you$"):
        hub.fetch_model("org/name", "v1", "grpo.model")
    assert busy.asked == 6


@pytest.mark.parametrize(
    "error",
    [
        refused(404, RepositoryNotFoundError),
        refused(401),
        not_cached(httpx2.ConnectError("no route")),
        ValueError("not a name"),
    ],
)
def test_what_waiting_does_not_mend_is_said_at_once(monkeypatch, tmp_path, waits, error):
    gone = Hub(tmp_path, [error])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", gone)
    with pytest.raises(InputError, match=r"^model.path org/name \(no such folder here, and not loaded"):
        hub.fetch_model("org/name", "v1")
    assert (gone.asked, waits) == (1, [])


def test_a_folder_is_not_looked_for_in_the_hub(monkeypatch, tmp_path, waits):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Hub(tmp_path, [AssertionError()]))
    assert hub.fetch_model(str(tmp_path)) == str(tmp_path.resolve())

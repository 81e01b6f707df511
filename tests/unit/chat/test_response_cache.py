"""The log of replies: found again whoever wrote them, whole lines only, on any file system."""

import json
import threading
import uuid

import pytest

from lm_mixup.chat.response_cache import _SEGMENT_LINES, ReplyLog
from lm_mixup.core.run_dir import RunDir
from lm_mixup.core.schemas import content_id

KEYS = [content_id(str(number)) for number in range(3000)]


@pytest.fixture(params=["local", "memory"])
def run(request, tmp_path):
    return RunDir(tmp_path if request.param == "local" else f"memory://{uuid.uuid4().hex}")


def fill(log, first, stop):
    for number in range(first, stop):
        log.add(KEYS[number], f"reply {number} \u2028 é", 10, 1)


def test_a_reply_is_found_by_its_writer_and_by_those_who_come_later(run):
    log = ReplyLog(run, "replies", "rate")
    assert log.recall(KEYS[0]) == []
    fill(log, 0, 20)
    log.add(KEYS[3], "second", 5, 5)
    for reader in (log, ReplyLog(run, "replies", "select")):
        assert reader.recall(KEYS[3]) == ["reply 3 \u2028 é", "second"]
        assert reader.recall(KEYS[20]) == []
        assert reader.totals("rate") == {"replies": 21, "prompt_tokens": 205, "completion_tokens": 25}
        assert reader.totals("select") == {}


def test_a_reader_learns_what_others_have_written_since(run):
    first, second = ReplyLog(run, "replies", "a"), ReplyLog(run, "replies", "b")
    for turn in range(3):
        fill(first, 10 * turn, 10 * turn + 10)
        fill(second, 100 + turn, 101 + turn)
        for log in (first, second):
            log.refresh()
            log.refresh()  # a second time changes nothing
            assert log.recall(KEYS[10 * turn + 9]) == [f"reply {10 * turn + 9} \u2028 é"]
            assert log.recall(KEYS[100 + turn]) == [f"reply {100 + turn} \u2028 é"]
            assert log.totals()["replies"] == 11 * (turn + 1)


def test_threads_lose_nothing_and_segments_follow_each_other(run):
    log = ReplyLog(run, "replies", "a")
    step = (_SEGMENT_LINES + 400) // 4
    threads = [threading.Thread(target=fill, args=(log, i * step, (i + 1) * step)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = ReplyLog(run, "replies")
    assert len(run.listing("replies")) == (1 if run.is_local else 2)
    for number in (0, step - 1, step, 4 * step - 1, 17, 999):
        assert log.recall(KEYS[number]) == again.recall(KEYS[number]) == [f"reply {number} \u2028 é"]
    assert again.totals() == log.totals() and again.totals()["replies"] == 4 * step


@pytest.mark.parametrize("cut", [1, 2, 15, 60])
def test_a_line_that_a_kill_cut_off_is_skipped(tmp_path, cut):
    run = RunDir(tmp_path)
    fill(ReplyLog(run, "replies", "a"), 0, 5)
    (path,) = tmp_path.glob("replies/*.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    log = ReplyLog(run, "replies", "a")
    assert log.recall(KEYS[3]) and not log.recall(KEYS[4])
    assert log.totals()["replies"] == 4
    fill(log, 4, 5)  # asked again: into a file of its own
    assert ReplyLog(run, "replies").recall(KEYS[4]) == ["reply 4 \u2028 é"]


def test_damaged_lines_are_skipped_and_those_behind_them_found(tmp_path):
    run = RunDir(tmp_path)
    fill(ReplyLog(run, "replies", "a"), 0, 3)
    (path,) = tmp_path.glob("replies/*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    junk = [b"\xff\xfe\n", b"[]\n", b"{}\n", b'{"stage": 3}\n', b'{"stage": "a", "key": "zz"}\n', b"\n"]
    path.write_bytes(lines[0] + b"".join(junk) + lines[1][:20] + b"\n" + lines[2])
    log = ReplyLog(run, "replies", "a")
    assert log.recall(KEYS[0]) and log.recall(KEYS[2]) and not log.recall(KEYS[1])


def test_keys_that_share_their_beginning_are_told_apart(run):
    log = ReplyLog(run, "replies")
    one, other = "f" * 16 + "0" * 16, "f" * 16 + "1" * 16
    log.add(one, "one", 1, 1)
    log.add(other, "other", 1, 1)
    for reader in (log, ReplyLog(run, "replies")):
        assert (reader.recall(one), reader.recall(other)) == (["one"], ["other"])


def test_a_line_holds_key_text_stage_and_tokens(tmp_path):
    ReplyLog(RunDir(tmp_path), "replies/rate", "rate").add(KEYS[0], "text", 7, 3)
    (path,) = tmp_path.glob("replies/rate/*.jsonl")
    (line,) = path.read_text().splitlines()
    assert json.loads(line) == {
        "stage": "rate",
        "key": KEYS[0],
        "text": "text",
        "replies": 1,
        "prompt_tokens": 7,
        "completion_tokens": 3,
    }

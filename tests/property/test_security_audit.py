"""The audit log's chain: any change of a byte or of the order is found; a cut end is survived."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.errors import ConfigError
from serving.security.audit import AuditLog, read, verify


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    log = AuditLog(path)
    for number in range(6):
        log.append({"event": "login", "user": f"ann-{number}", "text": "é\u2028\n\"" * number})
    assert verify(path).fault is None
    return path.read_bytes()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_flipped_byte_is_found_in_its_line(whole: bytes, tmp_path_factory: pytest.TempPathFactory,
                                               data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(whole) - 1))
    flip = data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "flipped.jsonl"
    path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1:])
    verdict = verify(path)
    assert verdict.fault is not None
    assert verdict.fault.startswith(f"line {whole[:place].count(10) + 1}:")


@settings(max_examples=60, deadline=None)
@given(order=st.lists(st.integers(0, 5), max_size=8))
def test_missing_repeated_and_reordered_lines_are_found(whole: bytes, tmp_path_factory: pytest.TempPathFactory,
                                                        order: list[int]) -> None:
    lines = whole.splitlines(keepends=True)
    path = tmp_path_factory.getbasetemp() / "ordered.jsonl"
    path.write_bytes(b"".join(lines[number] for number in order))
    verdict = verify(path)
    good = next((i for i, number in enumerate(order) if i != number), len(order))
    assert verdict.lines == good
    assert (verdict.fault is None) == (good == len(order))


def test_a_cut_or_remade_log_does_not_hold_a_hash_noted_before(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(whole)
    head = verify(path).head
    assert verify(path, head).held
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    assert not verify(path, head).held


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_log_cut_anywhere_goes_on(whole: bytes, tmp_path_factory: pytest.TempPathFactory,
                                    data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(whole)))
    path = tmp_path_factory.getbasetemp() / "cut.jsonl"
    path.write_bytes(whole[:place])
    AuditLog(path).append({"event": "after"})
    assert verify(path).fault is None
    cut = place - (whole.rfind(b"\n", 0, place) + 1)
    events = [values["event"] for values in read(path)]
    assert events == ["login"] * whole[:place].count(10) + ["cut_line_replaced"] * (cut > 0) + ["after"]


def test_nothing_is_written_behind_an_altered_line(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:])
    with pytest.raises(ConfigError, match="last line was altered"):
        AuditLog(path)


def test_a_line_that_is_no_event_is_altered_whatever_its_hash(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for body in (b'{"half', b"7", b'{"seq":"' + b"x", b'{"seq":1', b"[" * 100_000):
        path.write_bytes(whole + body + b',"hash":"' + hashlib.sha256(body).hexdigest().encode() + b'"}\n')
        assert verify(path).fault == f"line {whole.count(10) + 1}: altered"
        with pytest.raises(ConfigError, match="last line was altered"):
            AuditLog(path)


def test_a_log_that_is_moved_away_goes_on_in_a_new_file(tmp_path: Path) -> None:
    path, old = tmp_path / "audit.jsonl", tmp_path / "audit.1.jsonl"
    log, other = AuditLog(path), AuditLog(path)
    log.append({"event": "login"}, {"event": "login"})
    path.rename(old)
    other.append({"event": "changed"})
    log.append({"event": "login"})
    kept, begun = verify(old), verify(path)
    assert (kept.lines, kept.fault, begun.fault) == (2, None, None)
    lines = list(read(path))
    assert [values["event"] for values in lines] == ["log_replaced", "changed", "log_replaced", "login"]
    assert (lines[2]["lines"], lines[2]["head"]) == (2, kept.head)
    path.unlink()
    log.append({"event": "login"})
    assert next(read(path))["head"] == begun.head


def test_several_processes_share_a_log(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    script = ("import sys; from pathlib import Path; from serving.security.audit import AuditLog\n"
              "log = AuditLog(Path(sys.argv[1]))\n"
              "for n in range(25): log.append({'event': 'login', 'n': n})")
    running = [subprocess.Popen([sys.executable, "-c", script, str(path)]) for _ in range(2)]
    log = AuditLog(path)
    for number in range(25):
        log.note(event="refused", n=number)
    assert [process.wait(300) for process in running] == [0, 0]
    log.flush()
    verdict = verify(path)
    assert (verdict.lines, verdict.fault) == (75, None)


def test_a_flood_of_notes_is_counted_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    with log._writing:  # the disk stands still
        for number in range(3000):
            log.note(event="refused", n=number)
    log.flush()
    rows = list(read(path))
    lost = sum(row["count"] for row in rows if row["event"] == "not_logged")
    assert lost + sum(row["event"] == "refused" for row in rows) == 3000
    assert lost > 0
    assert json.dumps(rows[0])

"""A journal survives being killed at any byte: nothing whole is lost, nothing torn is believed, and a resumed
session continues to the same journal."""

import os
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.clock import ReplayClock
from algospace.errors import InputError, InternalError, UserError
from algospace.execution.journal import FileJournal, MemoryJournal, Opened, Ordered, ResumingJournal, encode
from algospace.execution.ledger import fold, open_orders
from algospace.execution.session import Session, TableFeed
from algospace.execution.venue import SimulatedVenue
from algospace.instruments import instrument
from algospace.risk.limits import LimitsConfig
from tests.session_market import ReplayPolicy, random_orders, random_table

ROWS = 60


def play(journal, seed=3, rows=ROWS, rolls=1):
    table = random_table(seed, n=rows, rolls=rolls, bars_per_day=20, missing=0.05)
    orders = random_orders(seed, table, 0, rows)
    session = Session(ReplayClock(), TableFeed(table), SimulatedVenue(instrument("ES")),
                      ReplayPolicy(orders, 0), None, journal)
    return session.run()


class BatchJournal(MemoryJournal):
    """Remembers what was appended together."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def append(self, *records):
        super().append(*records)
        self.batches.append(records)


@pytest.fixture(scope="module")
def whole():
    journal = BatchJournal()
    result = play(journal)
    return result, journal.batches, [encode(batch) for batch in journal.batches]


def flat(batches):
    return [record for batch in batches for record in batch]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_kill_at_any_byte_loses_only_the_torn_record(data, whole, tmp_path_factory):
    _, batches, lines = whole
    text = b"".join(lines)
    cut = data.draw(st.integers(0, len(text)))
    path = tmp_path_factory.mktemp("journal") / "j.log"
    path.write_bytes(text[:cut] + bytes(data.draw(st.sampled_from([0, 1, 5000]))))
    journal = FileJournal(path)
    ends = np.cumsum([len(line) for line in lines])
    complete = int(np.searchsorted(ends, cut, side="right"))
    records = flat(batches[:complete])
    assert list(journal) == records
    assert journal.torn_bytes == cut - (ends[complete - 1] if complete else 0)
    if complete:
        assert fold(journal).tobytes() == fold(records).tobytes()
    play(ResumingJournal(journal))
    journal.close()
    assert path.read_bytes() == text, "the resumed session must end with the journal of an unbroken one"


@settings(max_examples=30, deadline=None)
@given(garbage=st.binary(max_size=200), cut=st.integers(1, 40))
def test_garbage_after_a_crash_is_cut(garbage, cut, whole, tmp_path_factory):
    _, batches, lines = whole
    path = tmp_path_factory.mktemp("journal") / "j.log"
    path.write_bytes(b"".join(lines[:5]) + lines[5][:cut] + garbage)
    journal = FileJournal(path)
    assert list(journal) == flat(batches[:5])
    journal.close()
    assert path.read_bytes() == b"".join(lines[:5])


def test_damage_before_whole_records_is_refused(whole, tmp_path):
    _, _, lines = whole
    path = tmp_path / "j.log"
    damaged = bytearray(b"".join(lines))
    damaged[len(lines[0]) + 30] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(InputError, match="row 2: the record is damaged"):
        FileJournal(path)
    assert path.read_bytes() == bytes(damaged), "a refused journal is left as it is"


def test_one_writer_only(tmp_path):
    first = FileJournal(tmp_path / "j.log")
    with pytest.raises(UserError, match="another session writes this journal"):
        FileJournal(tmp_path / "j.log")
    first.close()
    FileJournal(tmp_path / "j.log").close()


def test_a_resumed_session_on_other_data_is_stopped(whole):
    journal = MemoryJournal()
    journal.append(*flat(whole[1])[:20])
    with pytest.raises(InternalError, match="departs from its journal"):
        play(ResumingJournal(journal), seed=4)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), rolls=st.integers(0, 3))
def test_ledger_is_the_sessions_account(seed, rolls):
    journal = MemoryJournal()
    result = play(journal, seed, rows=150, rolls=rolls)
    account, folded = result.account[0], fold(journal, price=float(result.account["mark"][0]))[0]
    for name in ("position", "trades", "day", "costs"):
        assert folded[name] == account[name], name
    held = ("entry",) if account["position"] else ()
    for name in (*held, "stop", "target", "equity", "day_start", "trade_start", "last_trade", "realised"):
        np.testing.assert_allclose(folded[name], account[name], rtol=1e-12, atol=1e-6, err_msg=name)
    assert folded["peak"] <= account["peak"], "the journal knows the peak of earlier days only"


def test_order_ids_are_unique_and_the_same_in_every_run(whole):
    ids = [record.order_id for record in flat(whole[1]) if isinstance(record, Ordered)]
    again = MemoryJournal()
    play(again)
    assert ids == [record.order_id for record in again if isinstance(record, Ordered)]
    assert len(set(ids)) == len(ids) > 5


def test_every_fill_follows_its_order_and_every_order_its_decision(whole):
    seen: set[str] = set()
    records = flat(whole[1])
    for before, record in pairwise(records):
        if isinstance(record, Ordered):
            assert type(before).__name__ == "Decided"
            assert before.row == record.row
            seen.add(record.order_id)
        if type(record).__name__ == "Filled":
            assert record.order_id in seen
    assert isinstance(records[0], Opened)


def test_an_order_is_in_the_journal_before_the_venue_sees_it():
    """The venue dies on its first order; the journal already holds that order, once, and calls it open."""

    class DeadVenue(SimulatedVenue):
        def play(self, account, after, order, bar):
            if order is not None:
                raise ConnectionError("the venue is gone")
            return super().play(account, after, order, bar)

    table = random_table(3, n=ROWS)
    orders = random_orders(3, table, 0, ROWS)
    journal = MemoryJournal()
    session = Session(ReplayClock(), TableFeed(table), DeadVenue(instrument("ES")), ReplayPolicy(orders, 0),
                      None, journal)
    with pytest.raises(ConnectionError):
        session.run()
    assert len([r for r in journal if isinstance(r, Ordered)]) == 1
    assert open_orders(journal) == [r for r in journal if isinstance(r, Ordered)]


def test_fills_are_in_the_journal_before_they_move_the_account():
    class FullJournal(MemoryJournal):
        def append(self, *records):
            if any(type(record).__name__ == "Filled" for record in records):
                raise OSError("no space left on device")
            super().append(*records)

    table = random_table(3, n=ROWS)
    orders = random_orders(3, table, 0, ROWS)
    session = Session(ReplayClock(), TableFeed(table), SimulatedVenue(instrument("ES")), ReplayPolicy(orders, 0),
                      LimitsConfig(), FullJournal())
    with pytest.raises(OSError, match="no space"):
        session.run()
    assert session.account["position"][0] == 0.0
    assert session.account["equity"][0] == session.initial_equity


@pytest.mark.parametrize("failing", ["pwrite", "fdatasync"])
def test_a_disk_that_refuses_leaves_the_journal_as_it_was(failing, whole, tmp_path, monkeypatch):
    _, batches, lines = whole
    journal = FileJournal(tmp_path / "j.log")
    journal.append(*batches[0])

    def refuse(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, refuse)
        with pytest.raises(OSError, match="No space"):
            journal.append(*batches[1])
    assert list(journal) == list(batches[0])
    journal.append(*batches[1])
    journal.close()
    assert (tmp_path / "j.log").read_bytes() == b"".join(lines[:2])

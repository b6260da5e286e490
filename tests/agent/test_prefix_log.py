"""What a peer that is told of changes now and then knows of a prefix cache: what is in it."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from llx.agent.prefix_log import News, PrefixLog
from llx.agent.prefix_reports import PrefixFeed, PrefixReports
from llx.core.prefix_blocks import unpacked
from llx.wire import Prefixes

MOST = 12
blocks = st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 15), max_size=6)
deeds = st.one_of(
    st.tuples(st.sampled_from(["begin", "add", "remove"]), blocks),
    st.tuples(st.just("clear"), st.just([])),
    st.tuples(st.sampled_from(["ask", "told", "lost"]), st.just([])),
)


class Cache:
    """A prefix cache, and a log that is to know it."""

    def __init__(self, remembered: int) -> None:
        self.log = PrefixLog(MOST, remembered)
        self.copies: Counter[int] = Counter()

    def do(self, deed: str, some: list[int]) -> None:
        if deed in ("begin", "clear"):
            self.copies.clear()
        if deed == "remove":
            for each in some:
                self.copies[each] -= 1 if self.copies[each] else 0
            self.log.remove(some)
            return
        for each in some:
            if self.copies[each] or sum(map(bool, self.copies.values())) < MOST:
                self.copies[each] += 1
        if deed == "clear":
            self.log.clear()
        else:
            getattr(self.log, deed)(some)

    @property
    def there(self) -> set[int]:
        return {each for each, count in self.copies.items() if count}


class Hearer:
    """A peer: what it knows by what it was told."""

    def __init__(self) -> None:
        self.known: set[int] = set()

    def hear(self, news: News | Prefixes) -> None:
        if news.is_whole:
            self.known = set()
        self.known |= set(unpacked(news.added))
        self.known -= set(unpacked(news.removed))


@given(st.integers(1, 8), st.lists(deeds, max_size=40))
def test_whoever_is_told_the_news_knows_what_is_there(remembered, story):
    cache, hearer, told = Cache(remembered), Hearer(), None
    cache.do("begin", [])
    for deed, some in story:
        if deed == "ask":
            told = None
        elif deed == "told":
            news = cache.log.since(told)
            if news is not None:
                hearer.hear(news)
                told = news.upto
            assert hearer.known == cache.there
            assert cache.log.since(told) is None, "nothing is told twice"
        elif deed != "lost":
            cache.do(deed, some)


@given(st.integers(1, 8), st.lists(deeds, max_size=40))
def test_what_is_lost_on_the_way_is_noticed_and_made_good(remembered, story):
    cache, hearer = Cache(remembered), Hearer()
    cache.do("begin", [])
    reports, feed = PrefixReports(cache.log, lambda _: None), PrefixFeed(hearer.hear)
    feed.want(True)
    for deed, some in story:
        if deed == "ask":
            reports.ask(7, feed.ask)
        elif deed in ("told", "lost"):
            report = reports.next(7, session=1)
            if report is not None and deed == "told":
                feed.hear(report)
        else:
            cache.do(deed, some)
    for block in (100, 101):  # a change shows that one is missing, and the ping after it mends it
        cache.copies.clear()
        cache.do("begin", [block])
        if (report := reports.next(7, session=1)) is not None:
            feed.hear(report)
        reports.ask(7, feed.ask)
    if (report := reports.next(7, session=1)) is not None:
        feed.hear(report)
    assert hearer.known == cache.there == {101}


def test_a_block_that_is_there_twice_is_there_until_both_are_dropped():
    log = PrefixLog()
    log.begin([1, 1, 2])
    first = log.since(None)
    assert (first.is_whole, sorted(unpacked(first.added))) == (True, [1, 2])
    log.remove([1, 2])
    news = log.since(first.upto)
    assert (list(unpacked(news.added)), list(unpacked(news.removed))) == ([], [2])
    log.remove([1])
    assert list(unpacked(log.since(news.upto).removed)) == [1]


def test_before_the_engine_has_begun_and_after_it_has_ended_nobody_is_told_anything():
    log = PrefixLog()
    log.add([1])
    assert log.since(None) is None
    log.begin([2])
    assert list(unpacked(log.since(None).added)) == [2]
    log.end()
    assert log.since(None) is None


def test_the_engine_notes_what_it_has_cached_while_anybody_asks():
    wanted: list[bool] = []
    reports = PrefixReports(PrefixLog(), wanted.append)
    assert reports.ask(1, 1)
    assert not reports.ask(1, 1), "a ping comes again"
    assert reports.ask(2, 5)
    reports.ask(1, 0)
    assert wanted == [True]
    assert reports.ask(2, 6), "it was told too little"
    reports.leave(2)
    reports.leave(2)
    assert wanted == [True, False]


def test_who_wants_none_hears_none_and_who_wants_them_again_asks_anew():
    heard: list[Prefixes] = []
    feed = PrefixFeed(heard.append)
    assert feed.ask == 0
    feed.want(True)
    first = feed.ask
    feed.want(False)
    feed.hear(Prefixes(1, first, 0, True, b""))
    assert heard == []
    feed.want(True)
    assert feed.ask > first
    feed.hear(Prefixes(1, first, 0, True, b""))
    assert heard == [], "it was told by what was asked before"
    feed.hear(Prefixes(1, feed.ask, 0, True, b""))
    assert len(heard) == 1

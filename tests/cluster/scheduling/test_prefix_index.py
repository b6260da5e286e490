"""The index of prefix caches, against the definition of what it says."""

from hypothesis import given
from hypothesis import strategies as st

from llx.cluster.scheduling.prefix_index import PrefixIndex

MOST = 8
names = st.integers(0, 11)
instances = st.sampled_from([f"m-{number}" for number in range(5)])
deeds = st.tuples(
    st.sampled_from(["add", "add", "remove", "drop"]), instances, st.lists(names, max_size=9)
)


def beginning(prompt: list[int], there: set[int]) -> int:
    """How many of the prompt's first blocks are there."""
    missing = (number for number, block in enumerate(prompt) if block not in there)
    return next(missing, len(prompt))


@given(st.lists(deeds, max_size=30), st.lists(st.lists(names, unique=True), min_size=1))
def test_it_finds_the_longest_beginning_that_each_instance_has(story, prompts):
    index, there = PrefixIndex(MOST), {}
    for deed, instance, some in story:
        own = there.setdefault(instance, set())
        if deed == "add":
            index.add(instance, some)
            for each in some:
                if len(own) < MOST:
                    own.add(each)
        elif deed == "remove":
            index.remove(instance, some)
            own -= set(some)
        else:
            index.drop(instance)
            own.clear()
        assert len(index) == len(set().union(*there.values()))
    for prompt in prompts:
        expected = {each: beginning(prompt, own) for each, own in there.items()}
        found = index.hits(prompt)
        assert dict(found) == {each: count for each, count in expected.items() if count}
        assert len(dict(found)) == len(found)


def test_places_of_instances_that_are_gone_are_used_again():
    index = PrefixIndex()
    for number in range(1000):
        index.add(f"m-{number}", [1, 2])
        assert index.hits([1, 2, 3]) == [(f"m-{number}", 2)]
        index.drop(f"m-{number}")
    assert len(index) == 0
    assert len(index._places) == 1

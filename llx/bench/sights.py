"""What the looks at a cluster during a run add up to: preemptions, and how full its KV caches were.

All of it is of the instances that were seen; nothing here asks a cluster.
"""

import itertools
import statistics
from collections.abc import Iterable, Sequence

from llx.bench.cluster_watch import InstanceLoad, Sight
from llx.bench.summary import Figures


def sight_figures(sights: Sequence[Sight]) -> Figures:
    """The figures of one run; None: not measured.

    ``llx_preemptions`` counts over all instances. ``llx_kv_used`` is the share of all KV blocks in
    use and ``llx_kv_spread`` that of the fullest instance less that of the emptiest: means over the
    looks.
    """
    shares = [found for each in sights if (found := _shares(each.instances))]
    return {
        "llx_preemptions": num_preemptions(sights),
        "llx_kv_used": statistics.fmean(map(statistics.fmean, shares)) if shares else None,
        "llx_kv_spread": statistics.fmean(max(e) - min(e) for e in shares) if shares else None,
    }


def num_preemptions(sights: Sequence[Sight]) -> int | None:
    """How many there were between the first look and the last; None: no instance has told.

    A count that is less than before is that of an engine that has been started anew.
    """
    counts: dict[str, list[int]] = {}
    for sight in sights:
        for each in sight.instances:
            if each.preemptions is not None:
                counts.setdefault(each.name, []).append(each.preemptions)
    return sum(map(_growth, counts.values())) if counts else None


def _growth(counts: Iterable[int]) -> int:
    return sum(
        after - before if after >= before else after for before, after in itertools.pairwise(counts)
    )


def _shares(instances: Sequence[InstanceLoad]) -> list[float]:
    return [each.blocks_used / each.blocks_total for each in instances if each.blocks_total]

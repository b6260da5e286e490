"""What the looks at a cluster during a run add up to: preemptions, instances, how full KV was.

All of it is of the instances that were seen; nothing here asks a cluster.
"""

import itertools
import math
import operator
import statistics
from collections.abc import Iterable, Sequence
from typing import Final

from llx.api import InstanceState
from llx.bench.cluster_watch import InstanceLoad, Sight
from llx.bench.summary import Figures

_GONE: Final = frozenset({InstanceState.STOPPED, InstanceState.FAILED, InstanceState.LOST})


def sight_figures(sights: Sequence[Sight]) -> Figures:
    """The figures of one run; None: not measured.

    ``llx_preemptions`` counts over all instances. ``llx_kv_used`` is the share of all KV blocks in
    use and ``llx_kv_spread`` that of the fullest instance less that of the emptiest: means over the
    looks. ``llx_instances`` is how many there were, on average over time: what was paid for, so
    those that start or are emptied count, too.
    """
    shares = [found for each in sights if (found := _shares(each.instances))]
    return {
        "llx_preemptions": num_preemptions(sights),
        "llx_instances": _mean_instances(sights),
        "llx_kv_used": statistics.fmean(map(statistics.fmean, shares)) if shares else None,
        "llx_kv_spread": statistics.fmean(max(e) - min(e) for e in shares) if shares else None,
    }


def _mean_instances(sights: Sequence[Sight]) -> float | None:
    seen = [each for each in sights if not each.error]
    if not seen:
        return None
    counts = [sum(one.state not in _GONE for one in each.instances) for each in seen]
    lasted = [after.at_s - before.at_s for before, after in itertools.pairwise(seen)]
    if sum(lasted) <= 0:
        return float(counts[0])
    return math.fsum(map(operator.mul, counts, lasted)) / sum(lasted)


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

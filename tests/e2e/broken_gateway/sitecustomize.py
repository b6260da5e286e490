"""Python runs this before a program when its directory is on PYTHONPATH. It breaks gateways.

BROKEN_GATEWAY says how. `forgets`: a stream that is placed anew is told of all its tokens but the
last, so that this one is made again. `checks nothing`: whatever comes from the owner of a stream
counts, at whichever place it belongs.
"""

import os
import sys

if "llx.gateway.main" in sys.orig_argv:
    from llx.agent.link import InstanceLink
    from llx.core.streams import Streams

    judge, add = Streams.judge, InstanceLink.add

    def judge_no_place(self, request, sender, epoch, offset, num_new):
        stream = self.get(request)
        place = offset if stream is None else stream.num_tokens
        return judge(self, request, sender, epoch, place, num_new)

    def add_without_last(self, request, epoch, demand, payload, name="", outputs=()):
        add(self, request, epoch, demand, payload, name, list(outputs)[:-1])

    if "checks nothing" in os.environ["BROKEN_GATEWAY"]:
        Streams.judge = judge_no_place
    if "forgets" in os.environ["BROKEN_GATEWAY"]:
        InstanceLink.add = add_without_last

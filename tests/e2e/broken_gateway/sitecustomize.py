"""Python runs this before a program when its directory is on PYTHONPATH. It breaks gateways.

BROKEN_GATEWAY says how. `forgets`: a stream that is placed anew is told of all its tokens but the
last, so that this one is made again. `checks nothing`: whatever comes from the owner of a stream
counts, at whichever place it belongs. `leaves zombies`: when an instance is back, those that the
others have are placed anew as if these were lost; they go on nevertheless, and are heard.
`checks no epochs`: whatever comes counts, whoever sends it.
"""

import os
import sys

if "llx.gateway.main" in sys.orig_argv:
    from llx.agent.link import InstanceLink
    from llx.core.streams import Streams, Verdict

    judge, add = Streams.judge, InstanceLink.add
    start, end_session, handle = InstanceLink.start, InstanceLink._end_session, InstanceLink._handle
    links, lost = [], set()

    def judge_no_place(self, request, sender, epoch, offset, num_new):
        stream = self.get(request)
        place = offset if stream is None else stream.num_tokens
        return judge(self, request, sender, epoch, place, num_new)

    def judge_no_epoch(self, request, sender, epoch, offset, num_new):
        stream = self.get(request)
        if stream is None:
            return Verdict.STALE
        stream.num_tokens += num_new
        return Verdict.COUNTS

    def add_without_last(self, request, epoch, demand, payload, name="", outputs=()):
        add(self, request, epoch, demand, payload, name, list(outputs)[:-1])

    def start_and_remember(self):
        links.append(self)
        start(self)

    def end_and_remember(self, reason):
        if self.is_ready:
            lost.add(self.member.instance)
        end_session(self, reason)

    def handle_and_forget(self, message, payload):
        was_ready = self.is_ready
        handle(self, message, payload)
        if self.is_ready and not was_ready and self.member.instance in lost:
            lost.discard(self.member.instance)
            for other in links:
                if other is not self and other.is_ready:
                    other._events.on_down(other, "taken for lost")

    how = os.environ["BROKEN_GATEWAY"]
    if "forgets" in how:
        InstanceLink.add = add_without_last
    if "checks nothing" in how:
        Streams.judge = judge_no_place
    if "checks no epochs" in how:
        Streams.judge = judge_no_epoch
    if "leaves zombies" in how:
        InstanceLink.start = start_and_remember
        InstanceLink._end_session = end_and_remember
        InstanceLink._handle = handle_and_forget

"""KV between two instances through the CPU: TCP, and shared memory within a host.

    engine core                          rank (in the core, or a process of its own)
    InstanceTransport ─► Rank ─────────► RankAgent ◄── KV ──► RankAgent of another instance

`instance` joins the ranks of an instance to one `llx.ports.KvTransport`; `rank` is one rank's
agent, `source` and `target` its two ends of a connection; `worker` and `remote` put the agent of a
rank into its own process. Threads, no asyncio: a chunk costs two system calls and two hand-overs of
the interpreter's lock at either end.
"""

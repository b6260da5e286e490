"""KV between two instances: through sockets, shared memory, or from GPU to GPU.

    engine core                          rank (in the core, or a process of its own)
    InstanceTransport ─► Rank ─────────► RankAgent ◄── KV ──► RankAgent of another instance

`instance` joins the ranks of an instance to one `llx.ports.KvTransport`; `rank` is one rank's
agent, `source` and `target` its two ends of a connection; `worker` and `remote` put the agent of a
rank into its own process.

How the bytes of a chunk travel is a *medium*, agreed on per connection (`choice`): `medium_ipc`,
`medium_nccl` (over `pairs` that `joining` makes), `medium_shm`, `medium_tcp`, both ends of each in
one file. What is said beside them (`frames`) goes over one socket, whatever the medium. Threads, no
asyncio: a chunk costs two system calls and two hand-overs of the interpreter's lock at either end.
"""

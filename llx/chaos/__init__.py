"""Faults done on purpose to a cluster that serves, and a verdict on what became of its streams.

    plan ──► run ──► victims (who may be hit) ──► inject (on their hosts)
              │  └──► traffic ──► integrity (each stream against its reference)
              └─────► leaks ──► verdict

Deciding is pure (`plan`, `victims`, `integrity`, `leaks`, `verdict`); `inject`, `traffic` and `run`
do things. Nothing here prints, and no part of a cluster knows of it.
"""

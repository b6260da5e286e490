"""`llx top`: pure functions from a snapshot to rows and text, and the Textual application.

Only `app`, `screens`, `widgets` and `messages` import Textual. Nothing here decides anything about
a cluster.
"""

"""`llx top`: pure functions from a snapshot to rows and text, and the Textual application.

Only `app` and `screens` import Textual; nothing here decides anything about a cluster.
"""

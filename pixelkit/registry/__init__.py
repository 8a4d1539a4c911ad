"""The shelf of a studio's models: versions, stages, who gets what, and a log of every change.

No torch. What people see is files; SQLite holds the index and the log.
"""

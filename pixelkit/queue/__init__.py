"""Jobs that run one after another, or one on each GPU: a book in SQLite, runners that take jobs, a process for each job.

`adding` writes jobs into the `book`; a `runner` claims one (`changes`) and starts `job` as a process of its own, which
trains and writes into the book what comes of it. No process keeps anything that the book does not hold: each of them
may be killed at any moment.
"""

"""Random programs on random faults, and what they must come to: 10,000 of them in CI.

`programs` draws them, `values` makes what they send, `model` says what they come to without any
communication, `perform` runs them on a communicator, `check` on the simulated backend, and judges.
``python -m tests.collective.schedules --seed 1234`` repeats one.
"""

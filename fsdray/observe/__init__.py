"""What people see of a run: `progress` while it goes on, `summary` when it is over.

What is measured is measured elsewhere (the engine's phases, the meter); here it is only shown.
"""

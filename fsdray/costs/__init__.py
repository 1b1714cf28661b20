"""What a run asks of the billed services, and what that costs.

`meter` counts requests, `prices` holds the dated price table, `receipt` prices a count. What a
request is, and how a payload splits into billed units, is said in `fsdray.services`.
"""

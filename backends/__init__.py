"""The platforms that ship with fsdray, one package each; others come as entry points.

A backend is three services (`fsdray.services`) and imports nothing above them, except where a
process of its own starts `fsdray.worker`.
"""

"""Interfaces that other libraries know, over fsdray's tasks: one module a library.

Nothing here is imported with fsdray, and each module imports its library only when it is used.
`concurrent.futures` needs no module here: it is `fsdray.Executor`.
"""

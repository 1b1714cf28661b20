"""The one place where the version stands; setup.cfg and the fingerprint read it."""

__version__ = "0.1.0"

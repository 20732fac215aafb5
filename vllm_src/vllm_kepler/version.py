"""The version of the port; the wheel and the role read it here."""

__version__ = "0.2.0"

"""What every room of Tallyman shares: contracts (pure) and doors (I/O)."""

__version__ = "0.1.0"

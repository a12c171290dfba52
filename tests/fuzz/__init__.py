"""Broken, odd and hostile records through the real decoders, beside a slow reference that reads one at a time."""

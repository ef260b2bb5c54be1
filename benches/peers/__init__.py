"""Sluice beside its peers, measured side by side on one machine: see README.md here."""

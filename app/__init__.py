"""The search page: two columns over one catalogue, baseline beside FANoise. Run as `python -m app`."""

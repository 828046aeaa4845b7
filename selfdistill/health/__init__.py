"""Whether a run is healthy, as its log tells; nothing here needs torch."""

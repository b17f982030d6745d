"""What a run writes down and says while it trains."""

"""One file a task: what it trains, and its train step."""

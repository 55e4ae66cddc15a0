"""What a run asks of the chips it will run on, found out without them."""

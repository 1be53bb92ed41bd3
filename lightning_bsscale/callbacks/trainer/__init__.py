"""What is read from the Trainer and its parts, and what is written to them."""

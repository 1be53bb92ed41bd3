"""What is refused, and the warnings, before the first step."""

"""Everything that reads or writes the Trainer and its parts."""

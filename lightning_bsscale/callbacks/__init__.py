"""Lightning's hooks: they decide the order of calls to the other folders, and do no arithmetic."""

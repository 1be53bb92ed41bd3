"""Lightning: when to call whom. A hook collects, asks theory, applies and records; it does no arithmetic of its own."""

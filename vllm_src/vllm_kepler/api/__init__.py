"""vLLM's API as the port serves it: bounds on connections, and checks of parsed requests."""

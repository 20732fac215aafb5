"""vLLM's API as the port serves it: bounds on connections, and checks of what vLLM made of a request."""

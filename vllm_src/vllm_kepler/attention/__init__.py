"""The V0 attention backend TORCH_SDPA of the port."""

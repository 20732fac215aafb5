"""Speculative decoding: several tokens are proposed for a sequence, and one step of the model checks them all."""

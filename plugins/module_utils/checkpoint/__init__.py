"""The one reader of checkpoints: config.json, quantization, headers of weight files, and what the port serves of them.

Hosts, the port and the supervisor have the same files, so this is Python 3.6 and its standard library.
"""

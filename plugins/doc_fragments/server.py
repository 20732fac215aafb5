"""Documentation of the options by which modules name a server of a host."""


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  name:
    description: Instance name of the unit, for messages too.
    type: str
    required: true
  host:
    description: Address that the server listens on.
    type: str
    default: 127.0.0.1
  port:
    description: Port that the server listens on.
    type: int
    default: 8000
"""
    KEY = r"""
options:
  api_key_file:
    description: File on the host that holds a line C(VLLM_API_KEY=...); left out for a server without a key.
    type: path
"""

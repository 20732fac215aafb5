"""Documentation of what most modules support; a module names what it does otherwise."""


class ModuleDocFragment:
    DOCUMENTATION = r"""
attributes:
  check_mode:
    description: Whether a dry run says what would change, and changes nothing.
    support: full
  diff_mode:
    description: Whether the difference is shown.
    support: none
  platform:
    description: Systems that the module runs on.
    platforms: linux
    support: full
"""

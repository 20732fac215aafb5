"""Code of the controller that several plugins share. Plugins put the directory above on sys.path: Ansible has no
import path of its own for it outside collections."""

"""Asking nvidia-smi, which may fail, or never answer."""

import subprocess

TIMEOUT = 20.0  # seconds within which nvidia-smi answers even under load


def smi(command, arguments, timeout=TIMEOUT):
    """Run nvidia-smi: (whether it succeeded, its text). If it hangs in the driver, the text says so."""
    try:
        process = subprocess.Popen(
            [command] + arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            universal_newlines=True,
        )
    except OSError as error:
        return False, "%s: %s" % (command, error.strerror)
    try:
        text = process.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        # Do not wait for the process: one that hangs in the driver cannot be killed.
        process.kill()
        return False, "%s did not answer within %d s" % (command, timeout)
    if process.returncode and not text.strip():
        text = "%s ended with status %d and said nothing" % (command, process.returncode)
    return process.returncode == 0, text.strip()


def query(command, fields, timeout=TIMEOUT):
    """Answer to --query-gpu."""
    return smi(command, ["--query-gpu=" + ",".join(fields), "--format=csv,noheader,nounits"], timeout)

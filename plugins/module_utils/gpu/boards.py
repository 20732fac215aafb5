"""Which GPUs share a board."""

from .pci import bus_of


def by_switch(gpus):
    """Group GPUs as pci.nvidia_devices reads them: {address of the upstream port of their board's switch: [gpu]}.

    A GPU hangs on a downstream port of the switch, so the upstream port is the second bridge above it. GPUs with no
    switch above them are left out.
    """
    found = {}
    for gpu in gpus:
        if len(gpu["bridges"]) > 1:
            found.setdefault(gpu["bridges"][-2]["address"], []).append(gpu)
    return found


def by_serial(gpus, per_board):
    """Group GPUs as smi.gpus_of reads them, in the order of the bus: [[gpu, ...], ...].

    The GPUs of a board have its serial number. If nvidia-smi tells none, GPUs on consecutive buses are one board.
    """
    found = []
    for gpu in gpus:
        board = found[-1] if found else []
        if 0 < len(board) < per_board and is_neighbor(board[-1], gpu):
            board.append(gpu)
        else:
            found.append([gpu])
    return found


def is_neighbor(before, gpu):
    """Return whether a GPU is of the board of the one before it."""
    serials = {before["serial"], gpu["serial"]}
    if all(serial.isdigit() and int(serial) for serial in serials):
        return len(serials) == 1
    first, second = bus_of(before["bus"]), bus_of(gpu["bus"])
    return first[0] == second[0] and second[1] - first[1] == 1

"""Print as JSON what PyTorch was built with, for the architecture of the first argument too; asks no GPU."""

import json
import sys

import torch

arch_flags = getattr(torch._C, "_cuda_getArchFlags", lambda: None)() or ""
print(json.dumps({
    "cuDNN": torch.backends.cudnn.is_available(),
    "NCCL": torch.distributed.is_available() and torch.distributed.is_nccl_available(),
    "torch.distributed": torch.distributed.is_available(),
    "code for " + sys.argv[1]: sys.argv[1] in arch_flags.split(),
}))

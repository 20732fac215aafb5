"""Limits and sizes of the port's kernels, which preflight and the planner count with."""

# Bits of quantized values, and columns that share a scale; WHOLE_ROW for all of a row.
BITS = (4, 8)
GROUPS = (32, 64, 128)
WHOLE_ROW = -1
# Quantized columns of a GPU come in multiples of this.
COLUMNS = 32
# Elements of the largest float32 tile that a prompt's product is taken from if a matrix is not float32.
TILE = 1 << 24
# Bytes that the products of experts may take at once, and the multiple in which their sizes come.
EXPERT_BYTES = 1 << 27
EXPERT_ALIGNMENT = 4
# Tokens of a block of the KV cache by default, by choice, and where a prompt has its own while memory is measured.
BLOCK_SIZE = 16
BLOCK_SIZES = (8, 16, 32)
TEMPORARY_BLOCK_SIZE = 32
# Sizes of a head.
HEAD_MULTIPLE, LARGEST_HEAD = 8, 512
# Rows of a decoding step that CUDA graphs replay, and up to which proposed tokens are checked beside sequences.
ROWS = 16
# Bytes that the check of proposed tokens takes for each row and token of the vocabulary: probabilities of model and
# proposal and their logarithms, as they come, in the order of the sequences and normalized.
CHECKED_BYTES = 48

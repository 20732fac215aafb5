"""Errors of reading checkpoints."""

# Characters of a message that quotes a file: names and values in it may have any length.
LONGEST = 400


def shortened(text):
    """A text of at most LONGEST characters, those that would not show as escapes."""
    text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text[:LONGEST + 1])
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."


class CheckpointError(ValueError):
    """A checkpoint that cannot be served.

    Attributes:
        found, expected: as a message names them.
        place: the file at fault.
        next_step: a sentence for the operator.
    """

    next_step = "Choose another checkpoint of the model."

    def __init__(self, found, expected, place="config.json"):
        found = shortened(found)
        # The arguments themselves: processes hand errors on as pickles.
        super(CheckpointError, self).__init__(found, expected, place)
        self.found, self.expected, self.place = found, expected, place

    def __str__(self):
        return "%s: found %s; expected %s. %s" % (self.place, self.found, self.expected, self.next_step)


class UnsupportedConfigError(CheckpointError):
    """A key of config.json that the engine would read as something else."""


class UnsupportedQuantizationError(CheckpointError):
    """Quantized weights that the port does not serve."""


class FileError(CheckpointError):
    """A file that cannot be read, or is not what it should be."""

    next_step = "Fetch the model again."


class CorruptFileError(FileError):
    """A file that is cut short, or whose header is malformed."""


class UnsupportedFileError(FileError):
    """A whole file of a kind that the port does not serve."""

    next_step = CheckpointError.next_step


def unreadable(error, path, what="file"):
    """The FileError of an OSError about a file, or about a directory."""
    return FileError(error.strerror or "an error", "a %s that can be read" % what, path)


def unfetched(path):
    """The FileError of a file that git left for git-lfs to fetch."""
    return FileError("a pointer of git-lfs", "the file itself: run git lfs pull", path)


def faults_of(errors):
    """Errors as facts about files have them: [{file, found, expected}]."""
    return [{"file": error.place, "found": error.found, "expected": error.expected} for error in errors]


def reasons_of(faults):
    """What faults_of returned, for messages: [(found, with the file's name; expected)]."""
    return [("%s in %s" % (fault["found"], fault["file"]), fault["expected"]) for fault in faults]

"""Prompt lookup, and when a sequence rests from speculation."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any


def look_up(ids: array, least: int, most: int, count: int) -> list[int] | None:
    """`count` tokens that followed the last tokens where they stood before; None where they did not.

    Of n-grams of `least` to `most` tokens the longest counts, and of its places the last. Where the text ends before
    `count` tokens, what follows the place repeats itself.
    """
    text, width, place = ids.tobytes(), ids.itemsize, None
    for size in range(least, min(most, len(ids) - 1) + 1):
        end = len(text) - width
        tail = text[-size * width:]
        at = text.rfind(tail, 0, end)
        while at > 0 and at % width:
            # Between two tokens.
            at = text.rfind(tail, 0, at + len(tail) - 1)
        # If a short n-gram does not occur, no longer one does.
        if at < 0:
            break
        place = at // width + size
    if place is None:
        return None
    following = ids[place:].tolist()
    return [following[index % len(following)] for index in range(count)]


def proposal(sequence: Any, sizes: tuple[int, int], count: int) -> list[int] | None:
    """`count` tokens that may follow a sequence by n-grams of the least to the most of `sizes`; None without any."""
    return look_up(sequence.prompt_token_ids_array + sequence.output_token_ids_array, *sizes, count)


@dataclass
class Balance:
    """How many tokens to propose to one sequence: more while they are accepted, none while less than half of them are.

    A row of a step costs about a third of its first one, and a draft model's own steps come on top.

    Attributes:
        most: the largest credit: what earlier proposals count for.
        longest: steps of the longest rest; the first has 7, each further one four times as many and 7. 0: the first one
            has no end.
        credit: accepted tokens minus rejected ones; below 0 the sequence rests.
        proposed: of the last step, the sequence's length and the tokens that were proposed.
    """

    most: int
    longest: int
    credit: int = 0
    pause: int = 0
    resting: float = 0
    proposed: tuple[int, int] | None = None

    def look(self, length: int) -> int:
        """Return how many tokens to propose to a sequence of `length`; counts the last step's proposal."""
        if self.proposed is not None:
            before, count = self.proposed
            accepted = length - before - 1
            self.credit = max(-1, min(self.most, self.credit + 2 * accepted - count))
            self.proposed = None
            if self.credit >= 0:
                self.pause = 0
            else:
                self.pause = min(4 * self.pause + 7, self.longest)
                self.resting = self.pause or float("inf")
        if self.resting:
            self.resting -= 1
            return 0
        # Two for a sequence of which nothing is known, one after a rest.
        return self.credit + 2

"""Gives torch 2.0.1 the names and behaviors that vLLM 0.9.2 and transformers 4.51 expect.

Importing this package applies every record. Where torch has a name already, nothing happens: on torch 2.7 the
package changes nothing. `APPLIED` lists the names that were changed in this process.
"""

from . import attention, compiler, distributed, dtypes, library, modules
from .record import Backfill, apply

RECORDS: list[Backfill] = [
    record for topic in (dtypes, library, compiler, distributed, attention, modules) for record in topic.RECORDS
]
APPLIED: list[str] = [record.name for record in RECORDS if apply(record)]

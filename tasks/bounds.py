"""Types of options with their bounds, for the signatures that a configuration is checked against.

`task.eval_batch_size=0` is refused because the task's constructor says that it takes a Count; who
calls the constructor from Python is not checked.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
WholeNotNegative = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Split = Literal["train", "validation", "test"]

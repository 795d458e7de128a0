"""Types for schemas. The description of each is what an error message says is allowed."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

Port = Annotated[int, Meta(ge=1, le=65535, description="a port between 1 and 65535")]
Seconds = Annotated[float, Meta(gt=0, description="a number of seconds above 0")]
SecondsOrZero = Annotated[float, Meta(ge=0, description="a number of seconds, or 0")]
PositiveInt = Annotated[int, Meta(ge=1, description="a whole number above 0")]
NonNegativeInt = Annotated[int, Meta(ge=0, description="a whole number, 0 or more")]
Ratio = Annotated[float, Meta(ge=0, le=1, description="a number between 0 and 1")]
Text = Annotated[str, Meta(min_length=1, description="text that is not empty")]
Host = Annotated[str, Meta(min_length=1, description="a host name or an address")]
ByteSize = Annotated[
    int,
    Meta(
        ge=1,
        description='a number of bytes above 0, such as 65536, "64 kB" or "256 MiB"',
        extra={"unit": "bytes"},
    ),
]
Verbosity = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
LogFormat = Literal["text", "json"]
Overflow = Literal["disconnect", "drop_oldest", "block"]

"""Every error that flash_moe raises on purpose.

The classes come from the compiled core, so that C++ and Python raise the same ones: `ConfigError`
is the caller's mistake, `FormatError` a file that is not what it should be, `IoError` and
`DeviceError` a failing machine, `CancelledError` a call stopped by its owner, `InternalError` a
defect of flash_moe. All derive from `Error`.
"""

from ._core import (
    CancelledError,
    ConfigError,
    DeviceError,
    Error,
    FormatError,
    InternalError,
    IoError,
)

__all__ = [
    "CancelledError",
    "ConfigError",
    "DeviceError",
    "Error",
    "FormatError",
    "InternalError",
    "IoError",
]

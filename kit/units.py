"""Human-readable sizes."""


def human_bytes(count: float) -> str:
    """Format `count` bytes in decimal units: 269.1 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")

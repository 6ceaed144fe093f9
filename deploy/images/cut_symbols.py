"""`python cut_symbols.py FOLDER`: cuts what only debuggers read off the libraries in a folder.

A program loads a library up to its last segment. Behind that lie the names of all its functions, inner ones included:
98 MB of PyTorch's 450 for CPUs, 12 of uvloop's 14. `strip` does the same, but slim images do not have it, and where
images are built there may be no Debian mirror to install it from. The names that libraries find each other by stay.
"""

import struct
import sys
from pathlib import Path

# ELF, 64 bits, little-endian; and where its header (elf(5)) tells of segments (program headers) and sections.
MAGIC = b"\x7fELF\x02\x01"
HEADER_BYTES = 64
SEGMENTS_AT, SECTIONS_AT = 32, 40
COUNTS_AT, COUNTS = 54, "<HHHHH"
SECTION_COUNTS_AT = 58
# Of a segment: where it lies in the file, its two addresses in memory, and its bytes in the file.
SEGMENT_PLACE_AT, SEGMENT_PLACE = 8, "<QQQQ"


def main() -> None:
    """Cut all libraries of a folder and say how much went."""
    libraries = [path for path in Path(sys.argv[1]).rglob("*.so*") if path.is_file() and not path.is_symlink()]
    saved = sum(cut(library) for library in libraries)
    sys.stdout.write(f"Symbols for debuggers: {saved / 1e6:.0f} MB cut off {len(libraries)} libraries.\n")


def cut(library: Path) -> int:
    """Cut one library where it is; return how many bytes went.

    None go from what is no such library, or has something else than its table of sections at its end. Raises OSError.
    """
    size = library.stat().st_size
    with library.open("r+b") as file:
        header = file.read(HEADER_BYTES)
        if len(header) < HEADER_BYTES or not header.startswith(MAGIC):
            return 0
        segments_at, sections_at = struct.unpack_from("<QQ", header, SEGMENTS_AT)
        segment_bytes, segments, section_bytes, sections, _names = struct.unpack_from(COUNTS, header, COUNTS_AT)
        file.seek(segments_at)
        table = file.read(segment_bytes * segments)
        loaded = 0
        for number in range(segments):
            at = number * segment_bytes + SEGMENT_PLACE_AT
            place, _virtual, _physical, length = struct.unpack_from(SEGMENT_PLACE, table, at)
            loaded = max(loaded, place + length)
        if not loaded or sections_at < loaded or sections_at + section_bytes * sections != size:
            return 0
        file.seek(SECTIONS_AT)
        file.write(bytes(8))
        file.seek(SECTION_COUNTS_AT)
        file.write(bytes(6))
        file.truncate(loaded)
    return size - loaded


if __name__ == "__main__":
    main()

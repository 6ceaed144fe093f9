"""Change the image archive in a bundle, and its digest in the manifest, as a hostile disk would between two reads."""

import hashlib
import sys
from pathlib import Path


def main(disk: Path, what: str) -> None:
    """Replace the images' IDs in the volume; with `manifest`, also all digests in the manifest."""
    volume = disk / "volume-0001.tar"
    before = volume.read_bytes()
    after = before.replace(b"sha256:111", b"sha256:fff")
    assert after != before, "the volume has no image"
    volume.write_bytes(after)
    if what == "manifest":
        manifest = disk / "manifest.json"
        text = manifest.read_text()
        archive = before[512 : before.index(b"\0", 512)]
        for old, new in ((before, after), (archive, archive.replace(b"sha256:111", b"sha256:fff"))):
            text = text.replace(hashlib.sha256(old).hexdigest(), hashlib.sha256(new).hexdigest())
        manifest.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

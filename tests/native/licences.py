"""`python -m tests.native.licences`: whether everything that the extension is built of may be shipped with it."""

import json
import re
import subprocess
import sys

from pipeline.settings import ROOT

ALLOWED = {"MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "MIT-0"}
UNDER_MORE_THAN_ONE = {"Unicode-3.0"}  # demanded beside one of the above


def problems() -> list[str]:
    """A sentence for each crate whose licence is not one of ours, or that comes from elsewhere than the registry."""
    manifest = ROOT / "pipeline" / "native" / "Cargo.toml"
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--manifest-path", str(manifest)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    sentences = []
    for crate in found["packages"]:
        if crate["source"] is None:
            continue
        name, licence = f"{crate['name']} {crate['version']}", crate["license"] or "none"
        if not allowed(licence):
            sentences.append(f"{name}: its licence is {licence}, which is not among those that we may ship.")
        if not crate["source"].startswith("registry+"):
            sentences.append(f"{name}: it comes from {crate['source']}, not from the registry.")
    return sentences


def allowed(licence: str) -> bool:
    """Whether an SPDX expression leaves a choice of ours: of OR one, of AND all."""
    demanded = re.split(r"\s+AND\s+", licence.replace("/", " OR "))
    return all(
        any(one.strip("() ") in ALLOWED | UNDER_MORE_THAN_ONE for one in part.split(" OR ")) for part in demanded
    )


if __name__ == "__main__":
    found = problems()
    print("\n".join(found), end="\n" if found else "")
    sys.exit(1 if found else 0)

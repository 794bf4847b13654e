"""The Khronos glTF validator, when node and the npm package `gltf-validator` are there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from ..utils.errors import InputError, UnprojectError

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
const validator = require('gltf-validator');
const bytes = new Uint8Array(require('fs').readFileSync(process.argv[1]));
validator.validateBytes(bytes, {maxIssues: 100}).then(
  report => console.log(JSON.stringify(report.issues)),
  error => { console.error(String(error)); process.exit(3); });
"""


def validator_modules() -> Path | None:
    """The node_modules folder with gltf-validator: under env UNPROJECT_NODE, else .stamps/node of this checkout."""
    places = [Path(os.environ["UNPROJECT_NODE"])] if os.environ.get("UNPROJECT_NODE") else []
    for place in [*places, ROOT / ".stamps" / "node"]:
        for modules in (place / "node_modules", place):
            if (modules / "gltf-validator" / "package.json").is_file():
                return modules
    return None


def validate_glb(path: str | Path, timeout_s: float = 120.0) -> dict[str, Any] | None:
    """{"errors", "warnings", "infos", "messages"} of a GLB, or None when node or the validator is not installed.

    messages: one dict a finding with code, message, severity (0 error, 1 warning, 2 info, 3 hint) and pointer.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a .glb file")
    node, modules = shutil.which("node"), validator_modules()
    if node is None or modules is None:
        return None
    environment = {**os.environ, "NODE_PATH": str(modules)}
    command = [node, "-e", SCRIPT, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode == 3:
        return {"errors": 1, "warnings": 0, "infos": 0, "messages": [{"message": done.stderr.strip(), "severity": 0}]}
    if done.returncode != 0:
        raise UnprojectError(f"the glTF validator failed: {done.stderr.strip()[-300:]}")
    issues = json.loads(done.stdout)
    return {
        "errors": issues["numErrors"],
        "warnings": issues["numWarnings"],
        "infos": issues["numInfos"],
        "messages": issues["messages"],
    }

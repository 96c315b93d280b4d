"""A new process that resolves models from a loopback Hub, and prints what became of each."""

import os
import subprocess
import sys

from hub.loopback import SECRET

_RESOLVE = """
import sys
from hebm_sample.errors import HebmError
from hebm_sample.hub.resolve import resolve
cache, *runs = sys.argv[1:]
for run in runs:
    name, _, revision = run.partition("@")
    try:
        model = resolve(name, revision=revision or None, cache_dir=cache)
        model.path("encoder.safetensors")
        print(model.revision)
    except HebmError as error:
        print(error)
"""


def child(hub, cache, *runs, before=None, **environment):
    """It resolves each of `runs`, NAME or NAME@REVISION; prints the commit or the error."""
    return subprocess.Popen(
        [sys.executable, "-c", _RESOLVE, str(cache), *runs],
        env={**os.environ, "HF_ENDPOINT": hub.endpoint, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,
    )


def lines(process):
    """What it printed; it must end well and never show the token."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and SECRET not in out + err, err
    return out.splitlines()

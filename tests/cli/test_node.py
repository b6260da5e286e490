"""`llx node download`: what is asked for, and what is there already."""

import hashlib
import json

import pytest

from llx.bootstrap.locks import lock_text
from llx.bootstrap.wheelhouse import INDEX_NAME


def test_a_folder_that_is_complete_is_left_alone(llx):
    folder = llx.root / "wheels"
    folder.mkdir()
    digest = hashlib.sha256(lock_text("cuda").encode()).hexdigest()
    targets = {"cuda Python 3.13 aarch64": digest}
    (folder / INDEX_NAME).write_text(json.dumps({"targets": targets, "files": {}}))
    asked = ("--platform", "cuda", "--python-version", "3.13", "--machine", "aarch64")
    done = llx("node", "download", str(folder), *asked)
    assert (done.exit_code, done.stdout) == (0, f"{folder}\n")
    assert "is complete for cuda Python 3.13 aarch64" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--python-version", "3.10"), 'no packages are known for Python "3.10"'),
        (("--machine", "riscv64"), 'no packages are known for machine "riscv64"'),
        (("--platform", "tpu"), "'tpu' is not one of"),
    ],
)
def test_what_no_lock_knows_is_a_mistake_of_the_caller(llx, words, message):
    done = llx("node", "download", "wheels", *words)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (llx.root / "wheels").exists()

"""The binding of NCCL: what it finds, refuses and hands over, with a library written for it."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from llx.cuda import nccl
from llx.cuda.nccl import MAX_CTAS, UNIQUE_ID_BYTES, Nccl
from llx.errors import EngineError

SOURCE = r"""
#include <stddef.h>
typedef struct { char internal[128]; } ncclUniqueId;
typedef struct {
  size_t size; unsigned int magic; unsigned int version;
  int blocking; int cgaClusterSize; int minCTAs; int maxCTAs; const char *netName; int splitShare;
} ncclConfig_t;
static long said[16];
long *llx_said(void) { return said; }
int ncclGetVersion(int *version) { *version = VERSION; return 0; }
int ncclGetUniqueId(ncclUniqueId *id) {
  for (int i = 0; i < 128; i++) id->internal[i] = i;
  return 0;
}
int ncclCommInitRankConfig(void **comm, int n, ncclUniqueId id, int rank, ncclConfig_t *c) {
  int is_same = 1;
  for (int i = 0; i < 128; i++) is_same &= id.internal[i] == (char)i;
  said[0] = is_same; said[1] = n; said[2] = rank;
  said[3] = c->size == sizeof *c; said[4] = c->magic; said[5] = c->version;
  said[6] = c->blocking; said[7] = c->minCTAs; said[8] = c->maxCTAs; said[9] = c->netName != 0;
  said[10] = c->cgaClusterSize == (int)0x80000000 && c->splitShare == (int)0x80000000;
  *comm = (void *)0x7f0012345678; return 7;
}
int ncclCommGetAsyncError(void *comm, int *state) { *state = STATE; return comm ? 0 : 4; }
int ncclGroupStart(void) { said[0] = 1; return 0; }
int ncclGroupEnd(void) { said[0] = 2; return 7; }
static int move(const void *p, size_t n, int type, int peer, void *comm, void *stream) {
  said[0] = (long)p; said[1] = n; said[2] = type; said[3] = peer; said[4] = (long)comm;
  said[5] = (long)stream; return 0;
}
int ncclSend(const void *p, size_t n, int t, int r, void *c, void *s) {
  return move(p, n, t, r, c, s);
}
int ncclRecv(void *p, size_t n, int t, int r, void *c, void *s) {
  return move(p, n, t, r, c, s);
}
int ncclCommAbort(void *comm) { said[0] = (long)comm + 2; return 0; }
const char *ncclGetErrorString(int result) { return result == 6 ? "remote process exited" : "?"; }
"""
COMM, STREAM = 0x7F0012345678, 0x7F00DEADBEE0


@pytest.fixture
def use(tmp_path, monkeypatch):
    """Build a library of that version and state, in the place where torch's would be."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler here")

    def build(version: int = 22809, state: int = 0) -> Path:
        library = tmp_path / f"{version}-{state}.so"
        defined = [f"-DVERSION={version}", f"-DSTATE={state}"]
        command = [compiler, "-shared", "-fPIC", *defined, "-xc", "-", "-o", str(library)]
        subprocess.run(command, input=SOURCE, text=True, check=True, timeout=120)
        monkeypatch.setattr(nccl, "_load", lambda: ctypes.CDLL(str(library)))
        return library

    return build


def said_by(library: Path) -> list[int]:
    call = ctypes.CDLL(str(library)).llx_said
    call.restype = ctypes.POINTER(ctypes.c_long)
    return call()[:16]


def test_what_is_handed_over_arrives(use) -> None:
    library = use()
    api = Nccl()
    assert api.version == "2.28.9"
    named = api.unique_id()
    assert named == bytes(range(UNIQUE_ID_BYTES))
    assert api.init(named, 1) == COMM
    assert said_by(library)[:11] == [1, 2, 1, 1, 0xCAFEBEEF, 21800, 0, 1, MAX_CTAS, 0, 1]
    assert api.is_settled(COMM)
    api.start_group()
    assert said_by(library)[0] == 1
    for move, rank in ((api.send, 1), (api.receive, 0)):
        move(0x7FFF00000010, 5 << 30, COMM, STREAM)
        assert said_by(library)[:6] == [0x7FFF00000010, 5 << 30, 0, rank, COMM, STREAM]
    api.end_group()
    assert said_by(library)[0] == 2
    api.abort(COMM)
    assert said_by(library)[0] == COMM + 2


def test_what_goes_on_is_not_settled_and_what_failed_is_said(use) -> None:
    use(state=7)
    assert not Nccl().is_settled(COMM)
    use(state=6)
    with pytest.raises(EngineError, match="ncclCommGetAsyncError: remote process exited"):
        Nccl().is_settled(COMM)


def test_an_id_of_another_length_never_reaches_nccl(use) -> None:
    use()
    with pytest.raises(EngineError, match="an id of 3 bytes"):
        Nccl().init(b"abc", 0)


def test_what_is_too_old_is_refused(use) -> None:
    use(version=21705)
    with pytest.raises(EngineError, match=r"2\.18 or newer"):
        Nccl()


def test_the_package_beside_torch_is_found(tmp_path, monkeypatch) -> None:
    (tmp_path / "nvidia/nccl/lib").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert nccl._beside_torch("libnccl.so.2") == [str(tmp_path / "nvidia/nccl/lib/libnccl.so.2")]

import ctypes
import resource
import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

CODE = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
from openfl_audio.process import prepare_process
print(prepare_process(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
open(sys.argv[1], "w").close()
print(oct(os.stat(sys.argv[1]).st_mode)[-3:])
"""


def test_a_process_may_open_as_many_files_as_the_system_allows_and_keeps_them_to_itself(tmp_path):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    command = [sys.executable, "-c", CODE, str(tmp_path / "file")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert output == [str(hard), str(hard), "600"]


# Four threads allocate at the same time; each line of malloc_info that begins with "<heap" is a heap.
HEAPS = """
import ctypes, sys, threading
from openfl_audio.process import share_one_heap
if sys.argv[1] == "shared":
    share_one_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
together = threading.Barrier(4)
def allocate():
    together.wait()
    for _ in range(100):
        libc.malloc(1000)
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.fdopen.restype = ctypes.c_void_p
stdout = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, stdout)
libc.fflush(stdout)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="only glibc has heaps to count")
@pytest.mark.parametrize(("heaps", "several"), [("shared", False), ("own", True)])
def test_threads_of_a_director_share_one_heap(heaps, several):
    command = [sys.executable, "-c", HEAPS, heaps]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (output.count("<heap nr=") > 1) is several

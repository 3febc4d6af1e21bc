import resource
import subprocess
import sys

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

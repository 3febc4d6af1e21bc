import json

import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from scripts.check_notebooks import MAX_CODE_CELLS, main

pytestmark = pytest.mark.process


@pytest.mark.parametrize(
    ("cells", "fault"),
    [
        ([new_code_cell("x = 1")], None),
        ([new_code_cell("%matplotlib inline\n!ls")], None),
        ([new_code_cell("x = 1", execution_count=3)], "code cell 1 holds an execution count"),
        (
            [new_code_cell("x"), new_code_cell("1", outputs=[new_output("stream", text="1")])],
            "code cell 2 holds outputs",
        ),
        ([new_code_cell("def f():\n    class A: ...")], "code cell 1 defines the class A"),
        ([new_code_cell("x = 1") for _ in range(MAX_CODE_CELLS + 1)], f"it has {MAX_CODE_CELLS + 1} code cells"),
        ([new_code_cell('plots.plot_loss(history, out / "loss.png")')], None),
        ([new_code_cell('x = 1\nplot_loss(history, out / "loss.png");\n')], "code cell 1 ends in a picture that its"),
        ([new_code_cell("x = = 1")], "code cell 1 is not valid Python"),
    ],
)
def test_a_notebook_that_is_not_clean_is_named_with_its_fault(tmp_path, capsys, cells, fault):
    path = tmp_path / "notebook.ipynb"
    path.write_text(json.dumps(new_notebook(cells=cells)))
    assert main([str(path)]) == (fault is not None)
    printed = capsys.readouterr().out
    assert (f"{path}: {fault}" if fault else "1 notebook(s) clean") in printed

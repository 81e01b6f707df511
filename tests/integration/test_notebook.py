"""The notebook in `examples/` runs from its first cell to its last, on the real Ray."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(ROOT / "examples" / "own_pool.ipynb", as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=800, resources={"metadata": {"path": str(folder)}})
    return client.execute(), folder


def _outputs(notebook):
    """The HTML that the cells showed, in order."""
    cells = (cell for cell in notebook.cells if cell.cell_type == "code")
    shown = (output for cell in cells for output in cell.outputs if output.output_type == "execute_result")
    return [output.data["text/html"] for output in shown if "text/html" in output.data]


def test_the_run_and_its_rows_are_shown_as_tables(executed):
    notebook, folder = executed
    run, rejected, rated = _outputs(notebook)
    assert "runs/notebook" in run and "<td>rate</td>" in run
    assert "duplicate" in rejected
    assert "steel, mostly" in rated
    assert (folder / "runs" / "notebook" / "report" / "index.html").is_file()

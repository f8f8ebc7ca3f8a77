"""manage.py and report.py: what is committed is what a clean run and the records say."""

import subprocess
import sys

import nbformat
import pytest

import manage
import records
import report

ROOT = records.HERE


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of notebooks."""
    monkeypatch.setattr(manage, "NOTEBOOKS", tmp_path)
    return tmp_path


def put(folder, *sources: str, name: str = "a") -> None:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    for i, cell in enumerate(cells):
        cell["id"], cell.metadata.tags = f"c{i}", [] if i else ["parameters"]
    cells[-1]["id"] = "rules"
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "", "language": "python"}
    nbformat.write(notebook, folder / f"{name}.ipynb")


def test_execute_publishes_the_whole_thing_whatever_the_shell_says(folder, monkeypatch):
    names = ("SMOKE_TEST", "DATASET", "MPLBACKEND")
    for name in names:
        monkeypatch.setenv(name, "1")
    put(folder, "SEED = 1", f"import os\nprint('1' in map(os.environ.get, {names}))")
    manage.execute("a")
    done = manage.read("a")
    assert manage.printed(done["cells"][1]) == "False\n"
    assert [cell["execution_count"] for cell in done["cells"]] == [1, 2]
    assert done["metadata"]["fingerprint"] == manage.fingerprint(done)


def test_execute_refuses_stderr_and_leaves_the_file(folder):
    put(folder, "x = 1", "import sys\nprint('careful', file=sys.stderr)")
    before = (folder / "a.ipynb").read_bytes()
    with pytest.raises(RuntimeError, match="wrote to stderr: careful"):
        manage.execute("a")
    assert (folder / "a.ipynb").read_bytes() == before


def test_run_executes_a_copy_as_another_study_and_shows_its_verdict(folder, monkeypatch, capsys):
    put(folder, "STUDY = 'steps'", "print(STUDY)", name=manage.STEPS[-1])
    (path,) = folder.iterdir()
    before = path.read_bytes()
    monkeypatch.setattr(manage, "ROOT", folder)
    monkeypatch.setattr(sys, "argv", ["manage.py", "run"])
    manage.main()
    told = capsys.readouterr().out
    assert told.startswith("scratch\n\nscratch\n")  # as it comes, and at the end
    assert f"executed notebook: run/{path.name}" in told and path.read_bytes() == before


def test_a_fingerprint_is_of_the_code_alone(folder):
    put(folder, "# set-up", "x = '# no comment'  # why", "\ny = 2\n", name="a")
    put(folder, "# set-up", "x = '# no comment'", "# more\ny = 2", name="b")
    put(folder, "# set-up", "x = '# other'", "y = 2", name="c")
    one, same, other = (manage.fingerprint(manage.read(name)) for name in "abc")
    assert one == same != other


def test_rename_needs_the_standard_library_alone():
    code = "import sys; sys.path.insert(0, 'notebooks'); import manage; print(*sys.modules)"
    names = subprocess.check_output([sys.executable, "-S", "-c", code], cwd=ROOT, text=True)
    assert not {"torch", "nbformat", "pandas", "records"} & set(names.split())


def test_between_wants_its_markers_once():
    text = "a\n<!-- x: made -->\nold\n<!-- end of x -->\nb"
    assert manage.between(text, "x", "new") == text.replace("old", "new")
    for bad in ("a", text + text):
        with pytest.raises(ValueError, match="exactly once"):
            manage.between(bad, "x", "new")


# --- What the records say -------------------------------------------------------------------------


def fake(values: list[float], **more: object) -> list[dict]:
    base = {"parameters": 9, "epochs": 3, "seconds": 1.0, "name": "n", "device": "a"} | more
    return [base | {"test_accuracy": v, "seed": i} for i, v in enumerate(values)]


def test_a_steps_result_says_what_its_runs_say(monkeypatch):
    runs = {"01_baseline": fake([99.0, 99.2]), "02_batch_norm": fake([99.0, 99.1, 99.3])}
    monkeypatch.setattr(report, "step_runs", runs.__getitem__)
    text = report.step_result("01_baseline")
    assert "99.100 %** on average over 2 runs" in text and "90 of 10,000" in text
    text = report.step_result("02_batch_norm")
    assert "**+0.033 points**" in text and "does not show an effect" in text
    assert report.IDEAS["02_batch_norm"][1] in text
    for sign, values in (("+", [99.5, 99.51, 99.49]), ("-", [98.5, 98.51, 98.49])):
        runs["02_batch_norm"] = fake(values)
        runs["01_baseline"] = fake([99.0, 99.01, 98.99])
        text = report.step_result("02_batch_norm")
        assert f"**{sign}0.500 points**" in text and "zero" not in text
        assert report.IDEAS["02_batch_norm"][1] in text


def test_the_fastest_has_reached_its_mean_and_equal_work_ranks_by_accuracy(monkeypatch):
    studies = {
        "quick": fake([99.0, 99.9] * 10),  # mean 99.45, but not by two standard errors
        "good": fake([99.43, 99.45] * 10),
        "better": fake([99.46, 99.47] * 10),
        "slow": fake([99.9] * 20),
        "few": fake([99.8] * 9),
        "seen": [r | {"seed": r["seed"] + 100} for r in fake([99.9] * 20)],
        "not_timed": fake([99.9] * 20),
    }
    studies = {name: [r | {"recipe": name} for r in runs] for name, runs in studies.items()}
    seconds = {"quick": 20.0, "good": 65.0, "better": 66.0, "slow": 90.0, "few": 9.0, "seen": 9.0}
    monkeypatch.setattr(report, "groups", lambda study: studies)
    monkeypatch.setattr(report, "timed", lambda: (seconds, "a machine"))
    assert {run["recipe"] for run in report.fastest()} == {"better"}
    seconds["good"] = 40.0
    assert {run["recipe"] for run in report.fastest()} == {"good"}


def test_what_is_made_from_records_is_up_to_date():
    """`manage.py refresh` would change nothing; each step has runs of several seeds."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert report.render_readme(readme) == readme
    for step in manage.STEPS:
        header = manage.read(step)["cells"][0]["source"]
        assert manage.between(header, "result", report.step_result(step)) == header
        assert len({run["seed"] for run in report.step_runs(step)}) >= 10, step
    table = records.table().to_csv(index=False, lineterminator="\n")
    assert (records.RESULTS / "runs.csv").read_text() == table


def test_readme_has_two_commands_and_ci_runs_its_tests_by_the_second():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    _, tests = [line for line in lines if line.startswith("python -m")]
    assert tests in (ROOT / ".ci" / "run").read_text().replace(" --quiet", "")

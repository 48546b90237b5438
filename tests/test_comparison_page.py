from html import escape

from conescope.report.comparison import comparison
from conescope.report.comparison_page import write_comparison
from conescope.report.opening import opening
from conescope.report.run_analysis import RunAnalysis
from conescope.report.sections import contents
from made_runs import made_run, made_series


def page_of(runs, tmp_path):
    analyses = [RunAnalysis(run) for run in runs]
    found = [contents(analysis) for analysis in analyses]
    file = write_comparison(analyses, found, tmp_path / "compare.html")
    return file.read_text(encoding="utf-8"), analyses, found


def test_every_run_says_its_answer_and_all_numbers_are_in_one_table(tmp_path):
    runs = [
        made_run(path=tmp_path / "a"),
        made_run(made_series(range(0, 400, 20), noise=0.5), path=tmp_path / "b"),
    ]
    text, analyses, found = page_of(runs, tmp_path)
    for analysis in analyses:
        assert escape(opening(analysis)) in text
    for name, values in comparison(found).items():
        cells = "".join(f"<td>{escape(value)}</td>" for value in values)
        assert f'<th scope="row">{escape(name)}</th>{cells}' in text
    assert text.count('class="plotly-graph-div"') == 3 * 2 + len(
        {key for parts in found for part in parts for key in part.compared}
    )


def test_a_run_of_one_kernel_says_why_its_figures_are_absent(tmp_path):
    runs = [made_run(path=tmp_path / "a"), made_run(made_series([0]), path=tmp_path / "b")]
    text, _, _ = page_of(runs, tmp_path)
    assert "a distance needs two kernels" in text


def test_names_are_escaped(tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    text, _, _ = page_of([made_run(path=tmp_path / evil), made_run(path=tmp_path / "b")], tmp_path)
    assert evil not in text.replace("\\u003c", "<") or evil not in text
    assert escape(evil) in text

"""The HTML reports in a real browser, at the width of a phone and of a desk: they fit, sort, show, and load nothing."""

import numpy as np
import pytest
from browser import WIDTHS, look_at, needs_browser
from folders import write_pictures
from predicted import predict, results_of, suite
from test_diagnose_page import NAMES, RISKS, TERMS, look
from test_html import noise
from test_preview_sheet import image  # noqa: F401

from timm_dad.common.html_report import ShownPicture
from timm_dad.data.images import Frame
from timm_dad.diagnosis.page import make_page as diagnose_page
from timm_dad.diagnosis.pictures import WorstImages
from timm_dad.diagnosis.plots import write_plots as diagnose_plots
from timm_dad.evaluation.report.page import make_page as evaluate_page
from timm_dad.evaluation.report.plots import write_plots
from timm_dad.evaluation.report.worst import worst_pictures
from timm_dad.evaluation.report.write import build_report
from timm_dad.evaluation.suites.open import open_suite
from timm_dad.preview.page import make_page as preview_page

pytestmark = [pytest.mark.slow, needs_browser]

EVIL = '"><img src=x onerror=alert(1)><script>alert(1)</script>&amp;'
# What holds of a page, and the column of a table after each click on its head.
PROBE = """
const images = [...document.images], root = document.documentElement, columns = {};
const heads = [...document.querySelectorAll('.sortable th[scope=col]')];
for (const [place, name] of %s) {
  const head = heads.filter(head => head.textContent === name)[place];
  const cells = () => [...head.closest('table').tBodies[0].rows].map(row => row.cells[head.cellIndex].textContent);
  const states = [[head.getAttribute('aria-sort'), cells()]];
  for (let click = 0; click < 2; click++) {
    head.querySelector('button').click();
    states.push([head.getAttribute('aria-sort'), cells()]);
  }
  columns[name] = states;
}
if (heads.length) heads[0].querySelector('button').focus();
return {
  width: window.innerWidth, needed: root.scrollWidth, columns, text: document.body.innerText,
  images: images.length, broken: images.filter(image => !image.naturalWidth).map(image => image.alt),
  scripts: document.scripts.length, sorted: document.querySelectorAll('[aria-sort]').length,
  focused: heads.length && document.activeElement === heads[0].firstChild && document.activeElement.tabIndex === 0,
  heads: heads.length, nameless: heads.filter(head => !head.textContent.trim()).length,
};
"""


def check(found, errors, images):
    """What holds of every page, at both widths."""
    assert errors == []
    assert [one['width'] for one in found] == list(WIDTHS)
    for one in found:
        assert one['needed'] <= one['width']
        assert (one['images'], one['broken'], one['nameless']) == (images, [], 0)
        assert one['scripts'] == (1 if one['heads'] else 0)
    assert all(one['focused'] for one in found if one['heads'])


@pytest.fixture(scope='module')
def evaluated(tmp_path_factory):
    """A page of four models with long and evil names, on a clean suite, a shifted and a corrupted one."""
    root = tmp_path_factory.mktemp('pages')
    write_pictures(root / 'data', val=3)
    (root / 'data' / 'val' / 'dog').rename(root / 'data' / 'val' / '<b>"dog"&')
    data = open_suite('mine', str(root / 'data'))
    suites = [suite('val', 'clean'), suite('val-corrupted', 'corruption', ['fog/1', 'fog/3'])]
    models = {f'{EVIL}|': 0.3, 'a|b': 0.9, 'm' * 40: 0.05, 'other': 0.6}
    results = results_of(models, suites, images=1100)
    mistakes = predict([False] * 12, classes=4, confidence=np.linspace(0.1, 1, 12))
    for of_model in results.values():
        of_model['mine'] = {data.parts[0].name: mistakes}
    report = build_report(results, [*suites, data], resamples=20)
    plots = write_plots(report, root)
    worst = worst_pictures(results, [data], dict.fromkeys(models, Frame(size=(32, 32))), 0)
    page = root / 'report.html'
    page.write_text(evaluate_page(report, plots, worst, {'--suite': f'mine=/{"long" * 100}/{EVIL}'}))
    return page, report, 2 + 4 * 4


def test_the_page_of_evaluate(evaluated, tmp_path):
    page, report, images = evaluated
    columns = [[0, 'images'], [0, 'other'], [0, 'figure'], [1, 'suite']]
    found, errors = look_at(page, tmp_path, PROBE % columns)
    check(found, errors, images)
    for one in found:
        assert EVIL in one['text']
        assert '/<b>"dog"&' in one['text'].replace('true: ', '/')
        (none, before), (up, rising), (down, falling) = one['columns']['images']
        assert (none, up, down) == (None, 'ascending', 'descending')
        assert sorted(before) == sorted(rising) == sorted(falling)
        numbers = [int(cell.replace(',', '')) for cell in rising]
        assert numbers == sorted(numbers)
        assert numbers != sorted(numbers, key=str)  # as text 1,100 is before 12
        assert [int(cell.replace(',', '')) for cell in falling] == numbers[::-1]
        tops = [float(cell.split()[0]) for cell in one['columns']['other'][1][1]]
        assert tops == sorted(tops)
        assert f'{report["figures"]["other"]["val"]["*"]["top1"]["value"]:.2f}' in {f'{top:.2f}' for top in tops}
        assert one['columns']['figure'][1][1] == sorted(one['columns']['figure'][0][1])
        assert one['sorted'] == 2  # one column a table


def test_the_page_of_diagnose(tmp_path):
    worst = WorstImages(NAMES)
    for name in ('clean', 'far'):
        look(worst, name, [[1.0, 3.0], [2, 5]])
    views = {name: noise(32, 32) for name in ('clean', 'Q(x)', 'DAD')}
    shown = {**worst.shown(), 'DAD': [ShownPicture(views=views, lines=[EVIL, 'x' * 200])] * 2}
    report = {'risks': RISKS, 'terms': TERMS}
    text = '# Diagnosis\n\n| set | excess | largest |\n| --- | --: | --: |\n'
    text += ''.join(
        f'| {name} | {excess} | {term} |\n'
        for name, excess, term in (
            ('b', '-0.02 ± 3', 'fit'),
            ('a', '', 'shift'),
            ('c', '1e-05 ± 1', 'fit'),
            ('d', '-', 'x'),
        )
    )
    page = tmp_path / 'diagnose.html'
    page.write_text(diagnose_page(report, text, diagnose_plots(report, tmp_path), shown, {'--ood': EVIL}))
    found, errors = look_at(page, tmp_path, PROBE % [[0, 'excess'], [0, 'largest'], [0, 'set']])
    check(found, errors, 2 + 4 + 6)
    for one in found:
        assert EVIL in one['text']
        _, (_, rising), (_, falling) = one['columns']['excess']
        assert rising[:2] == ['-0.02 ± 3', '1e-05 ± 1']
        assert falling[:2] == rising[1::-1]
        assert set(rising[2:]) == set(falling[2:]) == {'', '-'}  # what is missing stays last
        assert one['columns']['largest'][1][1] == ['fit', 'fit', 'shift', 'x']
        assert one['columns']['set'][2][1] == ['d', 'c', 'b', 'a']


def test_the_page_of_preview(image, tmp_path):  # noqa: F811
    page = tmp_path / 'preview.html'
    page.write_text(preview_page([image], [EVIL] * 9))
    found, errors = look_at(page, tmp_path, PROBE % [])
    check(found, errors, 5)


def test_what_a_page_must_not_have_is_seen(tmp_path):
    page = tmp_path / 'bad.html'
    page.write_text('<body><div style="width:2000px">x</div><img src="x.png"><script>nothing()</script></body>')
    found, errors = look_at(page, tmp_path, PROBE % [])
    assert [one['needed'] > one['width'] for one in found] == [True, True]
    assert [len(one['broken']) for one in found] == [1, 1]
    assert 'nothing is not defined' in errors[0]

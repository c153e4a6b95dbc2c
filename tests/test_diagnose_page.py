"""``diagnose.html``: the images that are kept for it, its plots, and what it says."""

from contextlib import contextmanager

import pytest
import torch
from test_diagnose import Pictures
from torch.utils.data import ConcatDataset

from timm_dad.diagnosis import plots
from timm_dad.diagnosis.data import Batch, Sample
from timm_dad.diagnosis.page import make_page
from timm_dad.diagnosis.pictures import PICTURES, WorstImages
from timm_dad.diagnosis.plots import write_plots
from timm_dad.evaluation.report.plot_style import new_plot

NAMES = ('cat', 'dog', '<fish>')
# Logits whose largest softmax grows with the number, by class.
LOGITS = torch.eye(3)


def look(worst, name, student, teacher=None, label=None, **more):
    """Show it images whose colour is their number, and answers ``[class, logit]``."""
    student = torch.tensor(student)
    teacher = student if teacher is None else torch.tensor(teacher)
    label = torch.zeros(len(student), dtype=torch.long) if label is None else torch.tensor(label)
    said = {role: of[:, 1:] * LOGITS[of[:, 0].long()] for role, of in (('teacher', teacher), ('student', student))}
    x_pix = torch.arange(len(student)).div(255).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    worst.add(name, {name: x_pix}, label, said, [f'{index}.png' for index in range(len(label))], **more)


def kept(worst, name):
    """Numbers of the images."""
    return [next(iter(one.views.values())).getpixel((0, 0))[0] for one in worst.shown()[name]]


def test_the_most_confident_mistakes_are_kept_whatever_the_batches():
    answers = [[1.0, 3.0], [0, 9], [2, 5], [1, 4], [2, 5], [1, 1]]  # the second is right
    worst, in_two = WorstImages(NAMES, count=3), WorstImages(NAMES, count=3)
    look(worst, 'far', answers)
    assert kept(worst, 'far') == [2, 4, 3]
    look(in_two, 'far', answers[:3])
    look(in_two, 'far', answers[3:])
    confidence = [one.lines[0] for one in worst.shown()['far']]
    assert [one.lines[0] for one in in_two.shown()['far']] == confidence
    assert len(WorstImages(NAMES).shown()) == 0
    assert PICTURES == 4


def test_what_both_models_say_is_said():
    worst = WorstImages(NAMES)
    look(worst, 'far', [[2.0, 5.0]], teacher=[[1.0, 0.0]], label=[0])
    (one,) = worst.shown()['far']
    assert one.lines == ['student: <fish>, 98.7 %', 'teacher: cat, 33.3 %', 'true: cat', '0.png']
    look(worst, 'some', [[1.0, 5.0]], label=[0], classes=[2, 0, 1])
    assert worst.shown()['some'][0].lines[0] == 'student: cat, 98.7 %'


def test_dad_views_are_held_against_the_teacher_where_there_is_a_student():
    x_pix = torch.zeros(2, 3, 4, 4)
    views = {'clean': x_pix, 'Q(x)': x_pix, 'DAD': x_pix, 'random crop': x_pix}
    label = torch.tensor([0, 1])
    student, teacher = 5 * LOGITS[[1, 1]], 5 * LOGITS[[1, 2]]  # the first one agrees, and is wrong

    def of(**said):
        worst = WorstImages(NAMES)
        worst.add_views(views, label, dict.fromkeys(views, said), ['a', 'b'])
        return {name: [one.lines[1 + len(said)] for one in shown] for name, shown in worst.shown().items()}, worst

    found, worst = of(teacher=teacher, student=student)
    assert found == {'clean': ['a'], 'DAD': ['b']}
    assert worst.shown()['DAD'][0].lines[-1] == 'from the left: clean, Q(x), DAD'
    assert list(worst.shown()['DAD'][0].views) == ['clean: dog', 'Q(x): dog', 'DAD: dog']
    assert of(teacher=teacher)[0] == {'clean': ['a', 'b'], 'DAD': ['a', 'b']}


def test_files_of_a_suite_with_several_parts():
    parts = [Pictures(2), Pictures(3)]
    for number, part in enumerate(parts):
        part.filename = lambda index, number=number: f'{number}/{index}.png'
    batch = Batch(torch.empty(0), torch.empty(0), [0, 1, 2, 4])
    names = ['0/0.png', '0/1.png', '1/0.png', '1/2.png']
    assert Sample(ConcatDataset(parts), range(5), None).filenames(batch) == names
    assert Sample(parts[1], range(3), None).filenames(Batch(*batch[:2], [2])) == ['1/2.png']


RISKS = {
    'clean': {'teacher_error': 0.1, 'student_error': 0.3, 'disagreement': 0.25, 'teacher_loss': 7.0},
    'far': {'teacher_error': 0.2, 'student_error': 0.6, 'disagreement': 0.5, 'teacher_loss': 8.0},
}
TERMS = {'far': {'teacher': 0.2, 'fit': 0.3, 'shift': -0.1, 'student_error': 0.35, 'limiting': 'fit'}}


def test_plots_show_the_numbers(tmp_path, monkeypatch):
    drawn = []

    @contextmanager
    def spy(*args, **more):
        with new_plot(*args, **more) as axes:
            yield axes
            drawn.append(axes[0, 0])

    monkeypatch.setattr(plots, 'new_plot', spy)
    files = write_plots({'risks': RISKS, 'terms': TERMS}, tmp_path)
    assert [file.name for file in files] == ['risks.png', 'terms.png']
    risks, terms = drawn
    heights = [[bar.get_height() for bar in bars] for bars in risks.containers]
    assert heights == [[10, 20], [30, 60], [25, 50]]
    assert [[bar.get_height() for bar in bars] for bars in terms.containers] == [[20], [30], [-10]]
    assert [line[0][1] for line in terms.collections[0].get_segments()] == [35]
    before = [file.read_bytes() for file in files]
    assert [file.read_bytes() for file in write_plots({'risks': RISKS, 'terms': TERMS}, tmp_path)] == before
    monkeypatch.undo()
    alone = {name: {'teacher_error': of['teacher_error']} for name, of in RISKS.items()}
    assert [file.name for file in write_plots({'risks': alone, 'terms': None}, tmp_path)] == ['risks.png']


def test_without_matplotlib_there_are_no_plots_and_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(__import__('sys').modules, 'matplotlib', None)
    assert write_plots({'risks': RISKS, 'terms': None}, tmp_path) == []
    assert 'No plots: ' in caplog.text


@pytest.mark.parametrize(('terms', 'title'), [(TERMS, 'the student is most'), (None, 'the teacher is most')])
def test_the_page_says_what_the_pictures_are(terms, title):
    worst = WorstImages(NAMES)
    look(worst, 'far', [[2.0, 5.0]])
    page = make_page({'terms': terms}, '# Diagnosis\n\n## Risks\n', [], worst.shown(), {'--ood': '<far>'})
    assert f'<h3>far: {title} confidently wrong</h3>' in page
    assert 'student: &lt;fish&gt;, 98.7 %' in page
    assert '<td>&lt;far&gt;</td>' in page
    assert 'Diagnosis' not in page

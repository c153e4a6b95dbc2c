"""What the README says runs."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / 'README.md').read_text()


def test_the_python_example_runs():
    (code,) = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
    names = {}
    exec(code, names)
    assert names['student'].get_classifier().weight.grad is not None
    assert len(code.strip().splitlines()) <= 12


def test_the_two_commands_are_marked_for_ci():
    commands = dict(re.findall(r'<!-- command: (\w+) -->\n```bash\n(.*?)\n```', README, re.DOTALL))
    assert set(commands) == {'run', 'test'}
    assert commands['run'].endswith('python train_dad.py')
    assert 'pytest' in commands['test']


def test_files_that_the_readme_names_exist():
    root = Path(__file__).parents[1]
    for target in re.findall(r'\]\((?!http)([^)#]+)\)', README):
        assert (root / target).exists(), target


def test_it_is_short():
    assert len(README.splitlines()) <= 120

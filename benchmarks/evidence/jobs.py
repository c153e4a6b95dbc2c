"""What is run: every row of every study, for every seed."""

from collections.abc import Sequence
from dataclasses import replace

from latent_jobs import LATENT_STUDIES
from reinforced import AUGMENTED
from rows import CONTROL, DAD, MIXED, RANDOM_VIEW, ROWS, SEEDS
from train import Job
from views import RELEASED, Views

from timm_dad.method.latent_space import LatentAttackConfig


def _main() -> list[Job]:
    rows = list(ROWS.values())
    for name, flags in MIXED.items():
        rows.append(Job(study='main', row=f'DAD + {name}', seed=0, flags=(*DAD, *flags), views=Views()))
    for name, flags in MIXED.items():
        rows.append(Job(study='main', row=f'{CONTROL} + {name}', seed=0, flags=(*RANDOM_VIEW, *flags)))
    return rows


def _variants(study: str, rows: Sequence[str], **changes: Sequence[str]) -> list[Job]:
    """The rows with one of student, teacher, VQGAN changed."""
    ((field, values),) = changes.items()
    return [
        replace(ROWS[row], study=study, row=f'{value}: {row}', **{field: value}) for value in values for row in rows
    ]


def _ablation() -> list[Job]:
    base = replace(ROWS['DAD'], study='ablation')
    attacks = {
        'eps 0 (Q(Q(x)))': replace(RELEASED, eps=0.0, step_size=0.0),
        'eps 0.5, step 0.05': replace(RELEASED, eps=0.5, step_size=0.05),
        'eps 2, step 2': replace(RELEASED, eps=2.0, step_size=2.0),
        '0 steps (random start alone)': replace(RELEASED, num_steps=0),
        '10 steps': replace(RELEASED, num_steps=10),
        'random start 0': replace(RELEASED, random_start=0.0),
        'random start 1': replace(RELEASED, random_start=1.0),
    }
    weights = {
        'temperature 1': ('--dad', '--dad-weight', '1.5', '--dad-temperature', '1'),
        'temperature 2': ('--dad', '--dad-weight', '1.5', '--dad-temperature', '2'),
        'temperature 8': ('--dad', '--dad-weight', '1.5', '--dad-temperature', '8'),
        'weights 1, 0.5, 0.5 (released)': ('--dad', '--dad-weight', '0.5'),
        'weights 1, 0.5, 3': ('--dad', '--dad-weight', '3'),
        'weights 1, 1.5, 1.5': ('--dad', '--dad-weight', '1.5', '--dad-kd-weight', '1.5'),
    }
    jobs = [replace(base, row='base')]
    jobs += [replace(base, row=row, views=Views(attack=attack)) for row, attack in attacks.items()]
    jobs += [replace(base, row='attack from x', views=Views(start='x'))]
    jobs += [replace(base, row='attack from x, eps 2, step 2', views=Views(start='x', attack=attacks['eps 2, step 2']))]
    jobs += [replace(base, row='label filter', views=Views(keep_label=True))]
    jobs += [replace(base, row=row, flags=flags) for row, flags in weights.items()]
    control = replace(ROWS[CONTROL], study='ablation')
    released = ('--dad', '--dad-view', 'random', '--dad-weight', '0.5')
    jobs += [replace(control, row='2 random views')]
    jobs += [replace(control, row='2 random views, weights 1, 0.5, 0.5', flags=released)]
    return jobs


def _temperatures() -> list[Job]:
    """Each teacher at the temperature of all and at its own, with the control's views: nothing else differs.

    The target of ``auto`` was chosen by what temperatures gave on fxemoji (study `ablation`).
    """
    base = replace(ROWS[CONTROL], study='temperatures')
    return [
        replace(base, row=f'{teacher}, T {value}', teacher=teacher, flags=(*base.flags, '--dad-temperature', value))
        for teacher in ('weak', 'medium', 'strong')
        for value in ('4', 'auto')
    ]


def _rates() -> list[Job]:
    """Learning rates of the students that docs/demo.md has none for, with seeds of their own."""
    base = replace(ROWS[CONTROL], study='rates')
    return [
        replace(base, row=f'{student}, lr {lr}', student=student, flags=(*RANDOM_VIEW, '--lr', lr))
        for student in ('vit', 'mlp')
        for lr in ('0.001', '0.002', '0.004', '0.008')
    ]


def _speed() -> list[Job]:
    """What it costs to make less than one fresh view an image, or to make it with less (docs/speed.md)."""
    base = Job(study='speed', row='fresh views', seed=0, flags=DAD, online=True)
    flags = {
        'from the input': ('--dad-attack-from', 'input'),
        'every 2nd batch': ('--dad-every', '2'),
        'every 4th batch': ('--dad-every', '4'),
        'every 4th batch, replay 768': ('--dad-every', '4', '--dad-replay', '768'),
        'probability 0.25, replay 768': ('--dad-prob', '0.25', '--dad-replay', '768'),
    }
    jobs = [base, replace(base, row='tiny VQGAN', vqgan='tiny')]
    jobs += [replace(base, row=row, flags=(*DAD, *more)) for row, more in flags.items()]
    return [*jobs, replace(ROWS[CONTROL], study='speed', row='2 random views')]


def _reinforced() -> list[Job]:
    """RandAugment and Mixup with views and answers of a set, against the same with both made in every step."""
    base = Job(study='reinforced', row='', seed=0, flags=(*DAD, *AUGMENTED, *MIXED['Mixup']))
    online = replace(base, row='DAD latent, online', flags=(*base.flags, '--dad-attack', 'latent'), online=True)
    made = replace(base, row='DAD latent, 4 views a picture', views=Views(attack=LatentAttackConfig()))
    sets = [replace(made, row=f'DAD latent, reinforced, N {count}', reinforced=count) for count in (4, 16)]
    mixtures = replace(sets[-1], row=f'{sets[-1].row}, stored mixtures', mixtures=MIXED['Mixup'])
    control = replace(base, row=f'{CONTROL}, online', flags=(*base.flags, '--dad-view', 'random'))
    unmixed = [
        replace(job, row=f'{job.row}, no Mixup', flags=tuple(flag for flag in job.flags if flag not in MIXED['Mixup']))
        for job in (made, sets[-1])
    ]
    return [online, made, *sets, mixtures, control, *unmixed]


STUDIES: dict[str, tuple[list[Job], Sequence[int]]] = {
    'rates': (_rates(), (100, 101, 102)),
    'main': (_main(), SEEDS),
    'students': (_variants('students', ('plain', CONTROL, 'DAD'), student=('vit', 'mlp')), SEEDS),
    'teachers': (_variants('teachers', ('KD', CONTROL, 'DAD'), teacher=('weak', 'medium')), SEEDS),
    'temperatures': (_temperatures(), SEEDS),
    'vqgans': (_variants('vqgans', ('DAD', 'KD + Q(x)'), vqgan=('f2',)), SEEDS),
    'ablation': (_ablation(), SEEDS),
    'speed': (_speed(), SEEDS),
    'reinforced': (_reinforced(), SEEDS),
    **LATENT_STUDIES,
}


def all_jobs(studies: Sequence[str]) -> list[Job]:
    """Jobs of the studies, one seed of all rows before the next seed."""
    jobs = []
    for study in studies:
        rows, seeds = STUDIES[study]
        jobs += [replace(job, seed=seed) for seed in seeds for job in rows]
    return jobs

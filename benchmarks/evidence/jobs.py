"""What is run: every row of every study, for every seed."""

from collections.abc import Sequence
from dataclasses import replace

from train import Job
from views import RELEASED, Views

from timm_dad.method.augment import AnyAttack
from timm_dad.method.code_space import CodeAttackConfig
from timm_dad.method.latent_space import LatentAttackConfig

SEEDS = (0, 1, 2, 3, 4)

# Both views weigh the same in the rows with one; weight 1.5 was chosen on fxemoji (study `ablation`, docs/demo.md).
DAD = ('--dad', '--dad-weight', '1.5')
RANDOM_VIEW = (*DAD, '--dad-view', 'random')
# Distillation on the clean view alone: the second one is never asked for.
ONE_VIEW = ('--dad', '--dad-view', 'random', '--dad-prob', '0')

# On one view as much distillation in all as on two.
ONE_VIEW_TWICE = (*ONE_VIEW, '--dad-kd-weight', '2')

ROWS: dict[str, Job] = {
    'plain': Job(study='main', row='plain', seed=0),
    'KD': Job(study='main', row='KD', seed=0, flags=ONE_VIEW),
    'KD, weight 2': Job(study='main', row='KD, weight 2', seed=0, flags=ONE_VIEW_TWICE),
    'KD, 2 random views': Job(study='main', row='KD, 2 random views', seed=0, flags=RANDOM_VIEW),
    'KD + Q(x)': Job(study='main', row='KD + Q(x)', seed=0, flags=DAD, views=Views(kind='reconstruction', count=1)),
    'KD + noise': Job(study='main', row='KD + noise', seed=0, flags=DAD, views=Views(kind='noise')),
    'DAT': Job(study='main', row='DAT', seed=0, flags=DAD, dat=True, distil=False),
    'KD + DAT view': Job(study='main', row='KD + DAT view', seed=0, flags=DAD, dat=True),
    'DAD': Job(study='main', row='DAD', seed=0, flags=DAD, views=Views()),
}
MIXED = {
    'RandAugment': ('--aa', 'rand-m9-mstd0.5-inc1'),
    'AugMix': ('--aa', 'augmix-m3-w3'),
    'Mixup': ('--mixup', '0.8'),
}
CONTROL = 'KD, 2 random views'


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


LONG = ('--epochs', '96', '--val-interval', '96')
BASE = ('--dad-view-aug', 'base')
LATENT, CODES = LatentAttackConfig(), CodeAttackConfig()


def _latent_settings() -> list[Job]:
    """Radius, steps and neighbours, chosen on fxemoji with seeds of their own."""
    base = Job(study='latent settings', row='', seed=0, flags=(*DAD, *LONG))
    attacks: dict[str, AnyAttack] = {
        f'latent, eps {eps:g}, {steps} step{"s" * (steps > 1)}': LatentAttackConfig(
            eps=eps, step_size=eps, num_steps=steps
        )
        for eps in (0.25, 0.5, 1.0)
        for steps in (1, 3)
    }
    for neighbours in (8, 32):
        attacks[f'codes, {neighbours} nearest'] = CodeAttackConfig(neighbours=neighbours)
    return [replace(base, row=row, views=Views(attack=attack)) for row, attack in attacks.items()]


def _arms(job: Job, more: Sequence[str]) -> list[Job]:
    """Every way to make the second view, and what augmentations do to it: on both views, or on the clean one alone."""
    second: dict[str, tuple[tuple[str, ...], Views | None]] = {
        CONTROL: (RANDOM_VIEW, None),
        'KD + Q(x)': (DAD, Views(kind='reconstruction', count=1)),
        'KD + latent noise': (DAD, Views(attack=replace(LATENT, num_steps=0, start_size=1.0))),
        'KD + random codes': (DAD, Views(attack=replace(CODES, num_steps=0))),
        'DAD pixels (paper)': (DAD, Views()),
        'DAD latent': (DAD, Views(attack=LATENT)),
        'DAD codes': (DAD, Views(attack=CODES)),
    }
    jobs = [replace(job, row=row, flags=(*flags, *more), views=views) for row, (flags, views) in second.items()]
    flags = (*DAD, *more)
    jobs += [
        replace(job, row='KD, weight 2', flags=(*ONE_VIEW_TWICE, *more)),
        replace(job, row='DAD disagreement', flags=flags, disagree=True),
        replace(job, row='DAD pixels or latent', flags=flags, views=Views(), mixed=Views(attack=LATENT)),
    ]
    for name, mixed in MIXED.items():
        for row in (CONTROL, 'DAD latent'):
            flags, views = second[row]
            both = replace(job, row=f'{row} + {name} on both', flags=(*flags, *more, *mixed), views=views)
            clean = replace(both, row=f'{row} + {name} on clean', flags=(*both.flags, *BASE))
            jobs += [both, clean]
    return jobs


def _latent() -> list[Job]:
    job = Job(study='latent', row='plain', seed=0, flags=LONG)
    return [job, *_arms(job, LONG)]


# For all rows alike; study `pacs settings` says which, on validation pictures that are not reported.
PACS_TEMPERATURE = ('--dad-temperature', '4')
PACS_RATES = {
    'cnn': ('0.002', '0.004'),
    'vit': ('0.0005', '0.001', '0.002', '0.004'),
    'mlp': ('0.001', '0.002', '0.004'),
}
PACS = Job(study='', row='', seed=0, teacher='lite0', vqgan='pacs', data='pacs')


def _pacs_settings() -> list[Job]:
    """The teacher's temperature, learning rates and the radius, with seeds of their own."""
    base = replace(PACS, study='pacs settings')
    jobs = [
        replace(base, row=f'temperature {value}', flags=(*RANDOM_VIEW, '--dad-temperature', value))
        for value in ('1', '2', '4', '8')
    ]
    jobs += [
        replace(
            base,
            row=f'latent, eps {eps:g}',
            flags=(*DAD, *PACS_TEMPERATURE),
            views=Views(attack=replace(LATENT, eps=eps, step_size=eps)),
        )
        for eps in (0.25, 0.5, 1.0)
    ]
    jobs += [
        replace(base, row=f'{student}, lr {lr}', student=student, flags=(*RANDOM_VIEW, *PACS_TEMPERATURE, '--lr', lr))
        for student, rates in PACS_RATES.items()
        for lr in rates
    ]
    return jobs


def _pacs() -> list[Job]:
    job = replace(PACS, study='pacs latent')
    one_view = replace(job, row='KD', flags=(*ONE_VIEW, *PACS_TEMPERATURE))
    return [replace(job, row='plain'), one_view, *_arms(job, PACS_TEMPERATURE)]


def _pacs_students() -> list[Job]:
    """What tells the second views apart, for students that are no convolutional network."""
    rows = ('plain', CONTROL, 'KD + latent noise', 'DAD pixels (paper)', 'DAD latent')
    rows += (f'{CONTROL} + RandAugment on both', 'DAD latent + RandAugment on clean')
    return [
        replace(job, study='pacs students', row=f'{student}: {job.row}', student=student)
        for student in ('vit', 'mlp')
        for job in _pacs()
        if job.row in rows
    ]


STUDIES: dict[str, tuple[list[Job], Sequence[int]]] = {
    'rates': (_rates(), (100, 101, 102)),
    'main': (_main(), SEEDS),
    'students': (_variants('students', ('plain', CONTROL, 'DAD'), student=('vit', 'mlp')), SEEDS),
    'teachers': (_variants('teachers', ('KD', CONTROL, 'DAD'), teacher=('weak', 'medium')), SEEDS),
    'vqgans': (_variants('vqgans', ('DAD', 'KD + Q(x)'), vqgan=('f2',)), SEEDS),
    'ablation': (_ablation(), SEEDS),
    'latent settings': (_latent_settings(), (100, 101)),
    'latent': (_latent(), SEEDS),
    'speed': (_speed(), SEEDS),
    'pacs settings': (_pacs_settings(), (100, 101)),
    'pacs latent': (_pacs(), SEEDS),
    'pacs students': (_pacs_students(), SEEDS),
}


def all_jobs(studies: Sequence[str]) -> list[Job]:
    """Jobs of the studies, one seed of all rows before the next seed."""
    jobs = []
    for study in studies:
        rows, seeds = STUDIES[study]
        jobs += [replace(job, seed=seed) for seed in seeds for job in rows]
    return jobs

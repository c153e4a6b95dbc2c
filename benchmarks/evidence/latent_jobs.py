"""Studies of the second views: the latent attack and its controls, on emoji64 and on PACS."""

from collections.abc import Sequence
from dataclasses import replace

from rows import CONTROL, DAD, MIXED, ONE_VIEW, ONE_VIEW_TWICE, RANDOM_VIEW, SEEDS
from train import Job
from views import RELEASED, Views

from timm_dad.method.augment import AnyAttack
from timm_dad.method.code_space import CodeAttackConfig
from timm_dad.method.latent_space import LatentAttackConfig

LONG = ('--epochs', '96', '--val-interval', '96')
BASE = ('--dad-view-aug', 'base')
FEATURES = ('--dad-feature-weight', '1')
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


def _arms(job: Job, more: Sequence[str], latent: LatentAttackConfig = LATENT) -> list[Job]:
    """Every way to make the second view, and what augmentations do to it: on both views, or on the clean one alone."""
    second: dict[str, tuple[tuple[str, ...], Views | None]] = {
        CONTROL: (RANDOM_VIEW, None),
        'KD + Q(x)': (DAD, Views(kind='reconstruction', count=1)),
        'KD + latent noise': (DAD, Views(attack=replace(latent, num_steps=0, start_size=1.0))),
        'KD + random codes': (DAD, Views(attack=replace(CODES, num_steps=0))),
        'DAD pixels (paper)': (DAD, Views()),
        'DAD latent': (DAD, Views(attack=latent)),
        'DAD codes': (DAD, Views(attack=CODES)),
    }
    jobs = [replace(job, row=row, flags=(*flags, *more), views=views) for row, (flags, views) in second.items()]
    flags = (*DAD, *more)
    for row in (CONTROL, 'DAD latent'):
        of_both, views = second[row]
        jobs.append(replace(job, row=f'{row} + features', flags=(*of_both, *more, *FEATURES), views=views))
    jobs += [
        replace(job, row='KD, weight 2', flags=(*ONE_VIEW_TWICE, *more)),
        replace(job, row='DAD disagreement', flags=flags, disagree=True),
        replace(job, row='DAD pixels or latent', flags=flags, views=Views(), mixed=Views(attack=latent)),
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


# The rows that tell the second views apart.
SECOND_VIEWS = (CONTROL, 'KD + latent noise', 'DAD pixels (paper)', 'DAD latent')
BEST_ROWS = (f'{CONTROL} + RandAugment on both', 'DAD latent + RandAugment on clean')


def _latent_variants(study: str, values: dict[str, dict[str, object]], rows: Sequence[str]) -> list[Job]:
    """The rows of the study `latent`, each with fields of the job changed; the variant's name before the colon."""
    return [
        replace(job, study=study, row=f'{name}: {job.row}', **changes)
        for name, changes in values.items()
        for job in _latent()
        if job.row in rows
    ]


def _latent_curve() -> list[Job]:
    """Shorter and longer trainings than those of the study `latent`."""
    jobs = []
    for epochs in ('32', '192'):
        for job in _latent_variants('latent curve', {epochs: {}}, (*SECOND_VIEWS, *BEST_ROWS)):
            jobs.append(replace(job, flags=(*job.flags, '--epochs', epochs, '--val-interval', epochs)))
    return jobs


def _latent_ablation() -> list[Job]:
    """One setting of `DAD latent` changed at a time."""
    base = replace(next(job for job in _latent() if job.row == 'DAD latent'), study='latent ablation')
    views = {
        'eps 0.25': Views(attack=replace(LATENT, eps=0.25, step_size=0.25)),
        'eps 1': Views(attack=replace(LATENT, eps=1.0, step_size=1.0)),
        '3 steps': Views(attack=replace(LATENT, num_steps=3)),
        'random start 0': Views(attack=replace(LATENT, random_start=0.0)),
        '1 view a picture': Views(attack=LATENT, count=1),
        '16 views a picture': Views(attack=LATENT, count=16),
        'label filter': Views(attack=LATENT, keep_label=True),
        'in pixels, eps 2, step 2': Views(attack=replace(RELEASED, eps=2.0, step_size=2.0)),
    }
    flags = {
        'temperature 1': ('--dad-temperature', '1'),
        'temperature 8': ('--dad-temperature', '8'),
        'weights 1, 0.5, 0.5 (released)': ('--dad-weight', '0.5'),
        'weights 1, 0.5, 3': ('--dad-weight', '3'),
    }
    jobs = [replace(base, row=row, views=changed) for row, changed in views.items()]
    jobs += [replace(base, row=row, flags=(*base.flags, *more)) for row, more in flags.items()]
    mixed = next(job for job in _latent() if job.row == BEST_ROWS[1])  # with the setting that fxemoji likes best
    return [*jobs, replace(mixed, study=base.study, row='3 steps, RandAugment on clean', views=views['3 steps'])]


# For all rows alike; study `pacs settings` says which, on validation pictures that are not reported.
PACS_TEMPERATURE = ('--dad-temperature', '1')
PACS_LATENT = replace(LATENT, eps=1.0, step_size=1.0)
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
    return [replace(job, row='plain'), one_view, *_arms(job, PACS_TEMPERATURE, PACS_LATENT)]


def _pacs_students() -> list[Job]:
    """What tells the second views apart, for students that are no convolutional network."""
    rows = ('plain', *SECOND_VIEWS, *BEST_ROWS)
    return [
        replace(job, study='pacs students', row=f'{student}: {job.row}', student=student)
        for student in ('vit', 'mlp')
        for job in _pacs()
        if job.row in rows
    ]


LATENT_STUDIES: dict[str, tuple[list[Job], Sequence[int]]] = {
    'latent settings': (_latent_settings(), (100, 101)),
    'latent': (_latent(), SEEDS),
    'latent students': (
        _latent_variants(
            'latent students', {name: {'student': name} for name in ('vit', 'mlp')}, (*SECOND_VIEWS, *BEST_ROWS)
        ),
        SEEDS,
    ),
    'latent teachers': (
        _latent_variants('latent teachers', {name: {'teacher': name} for name in ('weak', 'medium')}, SECOND_VIEWS),
        SEEDS,
    ),
    'latent curve': (_latent_curve(), SEEDS),
    'latent ablation': (_latent_ablation(), SEEDS[:3]),
    'pacs settings': (_pacs_settings(), (100, 101)),
    'pacs latent': (_pacs(), SEEDS),
    'pacs students': (_pacs_students(), SEEDS),
}

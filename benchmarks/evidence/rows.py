"""Rows that studies share, and vary."""

from train import Job
from views import Views

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

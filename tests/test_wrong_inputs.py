"""What users get wrong, over all commands: one clear line, an exit code, nothing lost, nothing left behind.

Each row is a command line in a folder of its own, with one thing wrong. The line must name the flag or file, the value,
and the rule or the fix; how it says so is free.
"""

import logging
import re
import shlex
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import timm
import torch
from folders import write_pictures
from safetensors.torch import save_file
from tiny import save_tiny

import train_dad
from timm_dad.cli import COMMANDS, main
from timm_dad.common.files import write_file
from timm_dad.demo.data import DEMO_VQGAN
from timm_dad.vqgan.load import load_vqgan

LONGEST = 800  # letters of a line that is still clear

# Command lines that work; a row adds what is wrong. Their words that name a shared input bring it into the folder.
PICTURES = '--data-dir pictures'
PLAIN = f'train {PICTURES} --model test_resnet --img-size 32 --num-classes 4 --epochs 1 -b 4 -j 0 --experiment new'
MODELS = '--dad-teacher demo --dad-vqgan demo'
DAD = f'{PLAIN} --dad {MODELS} --dad-look 0'
FROM_SET = f'{PLAIN} --dad --dad-dir set'
PREVIEW = f'preview {PICTURES} --img-size 32 --images 1 {MODELS} --output new'
INFO = f'info {PICTURES} --model test_resnet --img-size 32 --num-classes 4 -b 4 -j 0 --batches 1'
GENERATE = f'generate {PICTURES} --img-size 32 -b 4 -j 0 {MODELS} --dad-look 0 --output new'
EVALUATE = 'evaluate --model demo --suite val=pictures/validation -b 4 -j 0 --bootstrap 0 --output new'
DIAGNOSE = (
    f'diagnose {PICTURES} --ood train=pictures/train --images 8 --img-size 32 {MODELS} -b 4 -j 0 --splits 1 '
    '--output new'
)
PUSH = 'push set --repo ada/greys --license mit --data-license mine --dry-run --output new'
EXPORT = 'export run --output new --format torch'
INIT = 'init pictures --output new.yaml'
PROBE = f'probe {PICTURES} --teacher timm:local-dir:timm_model -b 4 -j 0 --output new.safetensors'
VQGAN = (
    f'vqgan train {PICTURES} --img-size 32 --ch 32 --ch-mult 1 2 --num-res-blocks 1 --n-embed 8 -b 4 -j 0 --steps 2 '
    '--output new'
)
DISTILL = f'vqgan distill {PICTURES} --img-size 32 --vqgan demo --ch 8 -b 4 -j 0 --steps 2 --output new'

# Rules that lines may give in several ways.
LEAST = r'finite|or more|at least|positive|more than|above|greater|non-negative|from [01]|between'
RANGE = r'finite|from -?\d|between|at most|in \[0, 1\]|or less|up to'
WHOLE = r'\bint\b|integer|whole number'
NUMBER = r'\bfloat\b|number'
CHOICE = r'choose|names them|one of|known|close|mean|such as|there (are|is)|must be'
ABSENT = (
    r'no such|not exist|not found|missing|is no\b|not a file|there is no|no file|no folder|is none|cannot (be|locate)'
)
FILE = r'must be|empty|file|folder|cannot|contains|not a|no\b'
LEAVE = r'leave|needs|give|without|is for|exclude|not (used|allowed)|instead|only'

WEIGHTS = 'diffusion_pytorch_model.safetensors'  # as diffusers names them
ARCHITECTURE = Path(DEMO_VQGAN).with_suffix('.yaml').read_bytes()

ROWS = []


def row(name, command, flag, value, rule, *, files=None, change=None):
    """Add a row.

    Args:
        name: Of the test.
        command: The command line.
        flag: The flag or file that the line must name; ``value`` and ``rule`` likewise, all regular expressions.
        value: What was given or found.
        rule: The rule or the fix.
        files: Files to prepare: text, bytes, or ``None`` for a folder.
        change: Prepares what no file can say, given the folder.
    """
    ROWS.append(pytest.param(command, (flag, value, rule), files or {}, change, id=name))


# --- train: numbers and choices -------------------------------------------------------------------------------------
row('train-img-size-0', f'{PLAIN} --img-size 0', '--img-size', r'\b0\b', LEAST)
row('train-img-size-fraction', f'{PLAIN} --img-size 32.5', '--img-size', r'32\.5', WHOLE)
row('train-batch-size-0', f'{PLAIN} -b 0', '--batch-size', r'\b0\b', LEAST)
row('train-epochs-negative', f'{PLAIN} --epochs -3', '--epochs', '-3', LEAST)
row('train-epochs-word', f'{PLAIN} --epochs many', '--epochs', 'many', WHOLE)
row('train-lr-negative', f'{PLAIN} --lr -0.1', '--lr', r'-0\.1', LEAST)
row('train-lr-nan', f'{PLAIN} --lr nan', '--lr', 'nan', LEAST)
row('train-lr-infinite', f'{PLAIN} --lr inf', '--lr', 'inf', r'finite|or more|at most|number')
row('train-weight-decay-infinite', f'{PLAIN} --weight-decay inf', '--weight-decay', 'inf', r'finite|or more|number')
row('train-momentum-2', f'{PLAIN} --momentum 2', '--momentum', '2', RANGE)
row('train-seed-too-large', f'{PLAIN} --seed {10**30}', '--seed', '10{30}', RANGE)
row('train-workers-negative', f'{PLAIN} -j -2', '--workers', '-2', LEAST)
row('train-crop-pct-0', f'{PLAIN} --crop-pct 0', '--crop-pct', r'\b0', LEAST)
row('train-crop-pct-in-percent', f'{PLAIN} --crop-pct 95', '--crop-pct', '95', RANGE)
row('train-mean-of-two', f'{PLAIN} --mean 0.5 0.5', '--mean', r'0\.5, 0\.5', r'\b3\b')
row('train-std-0', f'{PLAIN} --std 0 0.5 0.5', '--std', r'\b0', LEAST)
row('train-interpolation', f'{PLAIN} --interpolation cubic', '--interpolation', r'\bcubic', 'bicubic')
row('train-scale-negative', f'{PLAIN} --scale -1 1', '--scale', '-1', f'area|{LEAST}')
row('train-ratio-0', f'{PLAIN} --ratio 0 1', '--ratio', r'\b0', LEAST)
row('train-hflip-percent', f'{PLAIN} --hflip 50', '--hflip', '50', RANGE)
row('train-color-jitter-negative', f'{PLAIN} --color-jitter -0.4', '--color-jitter', r'-0\.4', LEAST)
row('train-mixup-negative', f'{PLAIN} --mixup -0.2', '--mixup', r'-0\.2', LEAST)
row('train-mixup-odd-batch', f'{PLAIN} --mixup 0.2 -b 3', '--mixup', r'--batch-size,? (got )?3', 'even')
row('train-cutmix-minmax-reversed', f'{PLAIN} --cutmix-minmax 0.8 0.2', '--cutmix-minmax', r'0\.8',
    r'<|least|from|order')  # fmt: skip
row('train-task-unknown', f'{PLAIN} --task segmentation', '--task', 'segmentation', CHOICE)
row('train-target-format-unknown', f'{PLAIN} --target-format onehot', '--target-format', 'onehot', CHOICE)
row('train-multilabel-folder', f'{PLAIN} --task multilabel', '--task multilabel', 'a folder of one class each', 'hfds/')
row('train-multilabel-threshold', f'{PLAIN} --task multilabel --dataset hfds/a --multilabel-threshold 50',
    '--multilabel-threshold', r'50', RANGE)  # fmt: skip
row('generate-multilabel-folder', f'{GENERATE} --task multilabel', '--task multilabel', 'one class each', 'hfds/')
row('preview-multilabel-folder', f'{PREVIEW} --task multilabel', '--task multilabel', 'one class each', 'hfds/')
row('train-aug-splits-1', f'{PLAIN} --aug-splits 1', '--aug-splits', r'\b1\b', '2 or more|at least 2')
row('train-jsd-alone', f'{PLAIN} --jsd-loss', '--jsd-loss', '--aug-splits', LEAVE)
row('train-loss-unknown', f'{PLAIN} --loss focal', '--loss', 'focal', CHOICE)
row('train-loss-of-several-labels', f'{PLAIN} --loss db', '--loss', r'\bdb\b', 'several labels|use')
row('train-loss-jsd-alone', f'{PLAIN} --loss jsd', '--loss jsd', '--aug-splits', LEAVE)
row('train-loss-asl-mixed', f'{PLAIN} --loss asl --mixup 0.2', '--loss', '--mixup', LEAVE)
row('train-loss-setting', f'{PLAIN} --poly-epsilon 1', '--poly-epsilon', r'\bce\b', LEAVE)
row('train-sched-setting', f'{PLAIN} --lr-decay-fn linear', '--lr-decay-fn', 'cosine', 'wsd')
row('train-milestones-fall', f'{PLAIN} --sched multistep --decay-milestones 5 3', '--decay-milestones', '5, 3', 'rise')
row('train-stop-epoch-late', f'{PLAIN} --stop-epoch 9', '--stop-epoch', r'\b9\b', RANGE)
row('train-save-epochs-late', f'{PLAIN} --save-epochs 1 9', '--save-epochs', r'\b9\b', RANGE)
row('train-img-sizes-0', f'{PLAIN} --train-img-sizes 32 0', '--train-img-sizes', r'\b0\b', LEAST)
row('train-size-probs-of-one', f'{PLAIN} --train-img-sizes 32 44 --train-size-probs 1', '--train-size-probs',
    r'1\.0', 'one for each')  # fmt: skip
row('train-size-probs-alone', f'{PLAIN} --train-size-probs 1', '--train-size-probs', '--train-img-sizes', LEAVE)
row('train-size-random-mix-2', f'{PLAIN} --train-img-sizes 32 44 --train-size-schedule progressive '
    '--train-size-random-mix 2', '--train-size-random-mix', '2', RANGE)  # fmt: skip
row('train-recount-0', f'{PLAIN} --reprob 0.5 --recount 0', '--recount', r'\b0\b', LEAST)
row('train-remode', f'{PLAIN} --reprob 0.5 --remode noise', '--remode', 'noise', 'pixel')
row('train-smoothing-2', f'{PLAIN} --smoothing 2', '--smoothing', '2', RANGE)
row('train-drop-1.5', f'{PLAIN} --drop 1.5', '--drop', r'1\.5', RANGE)
row('train-checkpoint-hist-0', f'{PLAIN} --checkpoint-hist 0', '--checkpoint-hist', r'\b0\b', LEAST)
row('train-clip-grad-negative', f'{PLAIN} --clip-grad -1', '--clip-grad', '-1', LEAST)
row('train-clip-mode', f'{PLAIN} --clip-grad 1 --clip-mode l2', '--clip-mode', 'l2', 'norm')
row('train-warmup-negative', f'{PLAIN} --warmup-epochs -1', '--warmup-epochs', '-1', LEAST)
row('train-decay-epochs-0', f'{PLAIN} --sched step --decay-epochs 0', '--decay-epochs', r'\b0', LEAST)
row('train-decay-rate-1', f'{PLAIN} --sched plateau --decay-rate 1', '--decay-rate', r'\b1',
    r'less than|below|from 0|<')  # fmt: skip
row('train-opt-unknown', f'{PLAIN} --opt adamm', '--opt', 'adamm', r'\badam\b')
row('train-sched-unknown', f'{PLAIN} --sched cosin', '--sched', r'cosin\b', 'cosine')
row('train-opt-kwargs', f'{PLAIN} --opt-kwargs nesterow=True', '--opt-kwargs', 'nesterow', r'unexpected|unknown|takes')
row('train-opt-betas-of-one', f'{PLAIN} --opt adamw --opt-betas 0.9', '--opt-betas', r'0\.9', r'\b2\b|two')
row('train-opt-betas-1.5', f'{PLAIN} --opt adamw --opt-betas 1.5 0.9', '--opt(-betas)?', r'1\.5',
    r'invalid|from 0|less')  # fmt: skip
row('train-opt-eps-negative', f'{PLAIN} --opt adamw --opt-eps -1', '--opt(-eps)?', '-1', r'invalid|or more|positive')
row('train-aa-unknown', f'{PLAIN} --aa randaugment', '--aa', 'randaugment', r'rand-|such as|policy|one of')
row('train-aa-magnitude', f'{PLAIN} --aa rand-mhigh', '--aa', 'mhigh', r'rand-m9|number|invalid|such as')
row('train-aa-key', f'{PLAIN} --aa rand-m9-foo3', '--aa', 'foo3', r'unknown|rand-m9|such as|policy')
row('train-gp-unknown', f'{PLAIN} --gp median', '--gp', 'median', r'\bavg|fast|invalid')
row('train-crop-mode', f'{PLAIN} --train-crop-mode centre', '--train-crop-mode', 'centre', r'rrc')
row('train-input-size-of-two', f'{PLAIN} --input-size 3 32', '--input-size', '--input-size',
    r'\b3\b.*argument|3 numbers')  # fmt: skip
row('train-input-size-0', f'{PLAIN} --input-size 3 0 32', '--input-size', r'\b0\b', LEAST)
row('train-in-chans-0', f'{PLAIN} --in-chans 0', '--in-chans', r'\b0\b', LEAST)
row('train-in-chans-dad', f'{DAD} --in-chans 1', '--dad|--in-chans', r'\b1\b', r'\b3\b')
row('train-device', f'{PLAIN} --device gpu', '--device', 'gpu', 'cuda or cpu')
row('train-amp-dtype', f'{PLAIN} --amp --amp-dtype float8', '--amp-dtype', 'float8', 'bfloat16')
row('train-amp-of-half-weights', f'{PLAIN} --amp --model-dtype bfloat16', '--model-dtype', 'bfloat16', 'float32')
row('train-log-with', f'{PLAIN} --log-with tensorbord', '--log-with', 'tensorbord', 'tensorboard')
row('train-compiler', f'{PLAIN} --torchcompile indoctor', '--torchcompile', 'indoctor', 'inductor')
row('train-flag-of-dad', f'{DAD} --dad-teachr demo', '--dad-teachr', 'demo|--dad-teachr',
    r'--dad-teacher\b|unrecognized')  # fmt: skip
row('train-stray-word', f'{PLAIN} --dad yes', r'\byes\b', r'\byes\b', ABSENT + '|unrecognized|--data-dir')
row('train-flag-without-value', f'{PLAIN} --model', '--model', '--model', r'expected|needs')

# --- train: the model -----------------------------------------------------------------------------------------------
row('train-model-unknown', f'{PLAIN} --model resnt50', '--model', 'resnt50', CHOICE)
row('train-model-empty', f'{PLAIN} --model ""', '--model', "''|empty|nothing", CHOICE)
row('train-model-unicode', f'{PLAIN} --model résnet50', '--model', 'résnet50', CHOICE)
row('train-model-long', f'{PLAIN} --model {"x" * 5000}', '--model', 'x{20}', CHOICE)
row('train-model-kwargs', f'{PLAIN} --model-kwargs depht=3', '--model-kwargs', 'depht', r'unexpected|unknown|takes')
row('train-num-classes-0', f'{PLAIN} --num-classes 0', '--num-classes', r'\b0\b', LEAST)
row('train-num-classes-3', f'{PLAIN} --num-classes 3', '--num-classes', r'\b3\b', r'\b4\b')
row('train-initial-missing', f'{PLAIN} --initial-checkpoint gone.pth', '--initial-checkpoint', r'gone\.pth', ABSENT)
row('train-initial-folder', f'{PLAIN} --initial-checkpoint pictures', '--initial-checkpoint', 'pictures', FILE)
row('train-initial-text', f'{PLAIN} --initial-checkpoint a.pth', '--initial-checkpoint', r'a\.pth', FILE,
    files={'a.pth': 'no weights\n'})  # fmt: skip
row('train-initial-empty', f'{PLAIN} --initial-checkpoint a.pth', '--initial-checkpoint', r'a\.pth', FILE,
    files={'a.pth': b''})  # fmt: skip
row('train-initial-foreign', f'{PLAIN} --initial-checkpoint vqgan.safetensors', '--initial-checkpoint',
    r'vqgan\.safetensors', r'fit|match|lack|missing|hold|architecture')  # fmt: skip
row('train-pretrained-path-missing', f'{PLAIN} --pretrained --pretrained-path gone.pth', '--pretrained-path',
    r'gone\.pth', ABSENT)  # fmt: skip

# --- train: config, folders, resuming --------------------------------------------------------------------------------
row('train-config-missing', f'{PLAIN} --config gone.yaml', '--config', r'gone\.yaml', ABSENT)
row('train-config-folder', f'{PLAIN} --config pictures', '--config', 'pictures', FILE)
row('train-config-list', f'{PLAIN} --config a.yaml', '--config a.yaml', 'epochs', 'map|flags',
    files={'a.yaml': '- epochs\n- lr\n'})  # fmt: skip
row('train-config-text', f'{PLAIN} --config a.yaml', '--config a.yaml', 'hello', 'map|flags',
    files={'a.yaml': 'hello\n'})  # fmt: skip
row('train-config-picture', f'{PLAIN} --config a.yaml', '--config', r'a\.yaml', 'YAML',
    files={'a.yaml': b'\x89PNG\r\n\x1a\n\0\0'})  # fmt: skip
row('train-config-tab', f'{PLAIN} --config a.yaml', '--config', r'a\.yaml', 'YAML',
    files={'a.yaml': 'epochs: 3\n\tlr: 0.1\n'})  # fmt: skip
row('train-config-unknown-flag', f'{PLAIN} --config a.yaml', '--config a.yaml', 'epoch', r'not flags|unknown|--epochs',
    files={'a.yaml': 'epoch: 3\n'})  # fmt: skip
row('train-config-word', f'{PLAIN} --config a.yaml', '--config a.yaml', 'high', r'weight.decay',
    files={'a.yaml': 'weight_decay: high\n'})  # fmt: skip
row('train-config-number-for-name', f'{PLAIN} --config a.yaml', '--config a.yaml', '7', 'opt',
    files={'a.yaml': 'opt: 7\n'})  # fmt: skip
row('train-config-number-for-aa', f'{PLAIN} --config a.yaml', '--config a.yaml|--aa', '9', 'aa',
    files={'a.yaml': 'aa: 9\n'})  # fmt: skip
row('train-config-map-for-number', f'{PLAIN} --config a.yaml', '--config a.yaml', 'drop', r'reprob',
    files={'a.yaml': 'reprob: {drop: 1}\n'})  # fmt: skip
row('train-config-boolean-for-number', f'{PLAIN} --config a.yaml', '--config a.yaml', 'True', 'epochs',
    files={'a.yaml': 'val_interval: 1\nepochs: yes\n'})  # fmt: skip
row('train-config-number-keys', f'{PLAIN} --config a.yaml', '--config a.yaml', r'\b3\b', 'flag',
    files={'a.yaml': '3: epochs\nepoch: 3\n'})  # fmt: skip
row('train-config-word-for-dad', f'{PLAIN} --config a.yaml', '--config a.yaml', 'perhaps', r'\bdad',
    files={'a.yaml': 'dad: perhaps\n'})  # fmt: skip
row('train-config-alias', f'{PLAIN} --config a.yaml', '--config', r'a\.yaml', 'YAML|anchor|alias',
    files={'a.yaml': 'epochs: *gone\n'})  # fmt: skip
row('train-output-is-a-file', f'{PLAIN} --output names.txt', '--output', r'names\.txt', 'cannot|folder',
    files={'names.txt': 'cat\n'})  # fmt: skip
row('train-output-below-a-file', f'{PLAIN} --output names.txt/runs', '--output', r'names\.txt', 'cannot|folder',
    files={'names.txt': 'cat\n'})  # fmt: skip
row('train-experiment-is-a-file', f'{PLAIN} --output . --experiment names.txt', '--experiment', r'names\.txt',
    'cannot|folder', files={'names.txt': 'cat\n'})  # fmt: skip
row('train-experiment-too-long', f'{PLAIN} --experiment {"é" * 300}', '--experiment', 'é{20}', 'cannot|too long|short')
row('train-experiment-taken', f'{PLAIN} --output . --experiment run', '--experiment', r'\brun\b', 'resume|another')
row('train-resume-missing', f'{PLAIN} --resume gone.pth.tar', '--resume', r'gone\.pth\.tar', ABSENT)
row('train-resume-folder', f'{PLAIN} --resume run', '--resume', r'\brun\b', FILE)
row('train-resume-weights-alone', f'{PLAIN} --resume weights.pth', '--resume', r'weights\.pth', 'optimizer|training')
row('train-resume-a-list', f'{PLAIN} --resume a.pth', '--resume', r'a\.pth', 'optimizer|training',
    change=lambda root: torch.save([1, 2], root / 'a.pth'))  # fmt: skip
row(
    'train-resume-safetensors',
    f'{PLAIN} --resume vqgan.safetensors',
    '--resume',
    r'vqgan\.safetensors',
    'training|checkpoint',
)
row('train-resume-other-classes', f'{PLAIN} --num-classes 5 --resume run/last.pth.tar', '--num-classes', r'\b5\b',
    r'\b4\b')  # fmt: skip
row('train-resume-damaged', f'{PLAIN} --resume run/last.pth.tar', '--resume', r'last\.pth\.tar',
    r'damaged|broken|cannot|must be|not a PyTorch checkpoint',
    change=lambda root: write_file(root / 'run' / 'last.pth.tar', b'half'))  # fmt: skip
row('train-start-epoch-negative', f'{PLAIN} --start-epoch -1', '--start-epoch', '-1', LEAST)

# --- train: data -----------------------------------------------------------------------------------------------------
row('train-data-missing', f'{PLAIN} --data-dir gone', '--data-dir', 'gone', ABSENT)
row('train-data-unicode', f'{PLAIN} --data-dir données/été', '--data-dir', 'données/été', ABSENT)
row('train-data-long', f'{PLAIN} --data-dir {"d" * 300}', '--data-dir', 'd{20}', ABSENT + '|too long')
row('train-data-is-a-file', f'{PLAIN} --data-dir names.txt', '--data-dir', r'names\.txt', 'folder',
    files={'names.txt': 'cat\n'})  # fmt: skip
row('train-data-empty', f'{PLAIN} --data-dir none', '--data-dir|--train-split', 'none', 'train|folder',
    files={'none': None})  # fmt: skip
row('train-split-empty', f'{PLAIN} --data-dir none', '--data-dir|--train-split', 'none', r'no (images|pictures)',
    files={'none/train': None, 'none/validation': None})  # fmt: skip
row('train-one-class', f'{PLAIN} --data-dir one --num-classes 1', '--data-dir|--num-classes|--train-split',
    r'\b(1|one|cat)\b', r'2 or more|at least (2|two)|two',
    change=lambda root: write_single(root / 'one'))  # fmt: skip
row('train-no-pictures', f'{PLAIN} --data-dir texts', '--data-dir', 'texts', r'no (images|pictures)',
    files={f'texts/{split}/cat/a.txt': 'x' for split in ('train', 'validation')})  # fmt: skip
row('train-text-named-png', PLAIN, '--data-dir', r'cat.9\.png', r'decode|identify',
    files={'pictures/train/cat/9.png': 'hello\n'})  # fmt: skip
row('train-picture-of-no-bytes', PLAIN, '--data-dir', r'dog.9\.jpg', r'decode|identify|empty',
    files={'pictures/train/dog/9.jpg': b''})  # fmt: skip
row('train-picture-cut-short', PLAIN, '--val-split|--data-dir', r'tree.0\.png', r'decode|truncated',
    change=lambda root: shorten(root / 'pictures/validation/tree/0.png'))  # fmt: skip
row('train-classes-in-upper-case', PLAIN, '--val-split', 'CAT', r'classes|differ',
    change=lambda root: (root / 'pictures/validation/cat').rename(root / 'pictures/validation/CAT'))  # fmt: skip
row('train-split-typo', f'{PLAIN} --train-split trian', '--train-split', 'trian', 'train')
row('train-val-split-typo', f'{PLAIN} --val-split vall', '--val-split', 'vall', 'validation')
row('train-split-outside', f'{PLAIN} --train-split ../pictures/gone', '--train-split', 'gone', CHOICE)
row('train-class-map-missing', f'{PLAIN} --class-map gone.txt', '--class-map', r'gone\.txt', ABSENT)
row('train-class-map-folder', f'{PLAIN} --class-map run', '--class-map', r'\brun\b', FILE)
row('train-class-map-of-other-classes', f'{PLAIN} --class-map map.txt', '--class-map', r'map\.txt|cat',
    r'no (images|pictures)|class|lack|names', files={'map.txt': 'sun\nmoon\nstar\nsky\n'})  # fmt: skip
row('train-data-and-demo', f'{PLAIN} --dataset demo/noto', '--data-dir', 'demo/noto', LEAVE)
row('train-demo-style', 'train --dataset demo/notto --model test_resnet --epochs 1', '--dataset|demo/', 'notto', 'noto')
row('train-dataset-kind', f'{PLAIN} --dataset imagefolder/x', '--dataset', 'imagefolder', ABSENT + '|' + CHOICE)
row('train-samples-of-a-folder', f'{PLAIN} --train-num-samples -5', '--train-num-samples', '-5|folder',
    f'{LEAST}|{LEAVE}')  # fmt: skip
row('train-suite-missing', f'{PLAIN} --eval-suites far=gone', '--eval-suites', 'gone|far', ABSENT + '|no data')
row('train-suite-nameless', f'{PLAIN} --eval-suites pictures/train', '--eval-suites', 'pictures/train', 'NAME=')
row('train-suite-twice', f'{PLAIN} --eval-suites a=pictures/train a=pictures/validation', '--eval-suites', r'\ba\b',
    r'twice|once|own|another')  # fmt: skip
row('train-suite-of-other-classes', f'{PLAIN} --eval-suites noto=demo/noto', '--eval-suites', 'noto', 'class')
row('train-suite-interval-alone', f'{PLAIN} --eval-suites-interval 1', '--eval-suites-interval', '--eval-suites', LEAVE)

# --- train: DAD ------------------------------------------------------------------------------------------------------
row('train-dad-eps-in-255ths', f'{DAD} --dad-norm linf --dad-eps 8', '--dad-eps', r'\b8\b', r'\[0, 1\]')
row('train-dad-eps-infinite', f'{DAD} --dad-eps inf', '--dad-eps', 'inf', r'finite|from 0|\[0, 1\]')
row('train-dad-steps-negative', f'{DAD} --dad-num-steps -1', '--dad-num-steps', '-1', LEAST)
row('train-dad-random-start', f'{DAD} --dad-random-start 80', '--dad-random-start', '80', RANGE)
row('train-dad-temperature-0', f'{DAD} --dad-temperature 0', '--dad-temperature', r'\b0', LEAST)
row('train-dad-temperature-nan', f'{DAD} --dad-temperature nan', '--dad-temperature', 'nan', LEAST)
row('train-dad-temperature-infinite', f'{DAD} --dad-temperature inf', '--dad-temperature', 'inf', f'finite|{LEAST}')
row('train-dad-temperature-word', f'{DAD} --dad-temperature best', '--dad-temperature', 'best', 'number or auto')
row('train-dad-weight-negative', f'{DAD} --dad-weight -1', '--dad-weight', '-1', LEAST)
row('train-dad-weight-nan', f'{DAD} --dad-kd-weight nan', '--dad-kd-weight', 'nan', LEAST)
row('train-dad-prob', f'{DAD} --dad-prob 1.5', '--dad-prob', r'1\.5', RANGE)
row('train-dad-every-0', f'{DAD} --dad-every 0', '--dad-every', r'\b0\b', LEAST)
row('train-dad-warmup', f'{DAD} --dad-warmup-epochs -2', '--dad-warmup-epochs', '-2', LEAST)
row('train-dad-eps-sched', f'{DAD} --dad-eps-sched rising', '--dad-eps-sched', 'rising', CHOICE)
row('train-dad-precision', f'{DAD} --dad-precision int8', '--dad-precision', 'int8', 'bf16')
row('train-dad-micro-batch', f'{DAD} --dad-micro-batch -8', '--dad-micro-batch', '-8', LEAST)
row('train-dad-look', f'{DAD} --dad-look -1', '--dad-look', '-1', LEAST)
row('train-dad-cache', f'{DAD} --dad-cache -2', '--dad-cache', '-2', LEAST)
row('train-dad-recipe', f'{DAD} --dad-recipe papers', '--dad-recipe', 'papers', r'paper\b')
row('train-dad-view-flag', f'{PLAIN} --dad --dad-teacher demo --dad-view random --dad-eps 0.2', '--dad-eps',
    '--dad-view', 'dad|leave')  # fmt: skip
row('train-dad-same-crop', f'{DAD} --dad-same-crop', '--dad-same-crop', '--dad-dir', LEAVE)
row('train-dad-neighbours-of-pixels', f'{DAD} --dad-neighbours 4', '--dad-neighbours', 'pixels|neighbours', 'codes')
row('train-dad-latent-norm', f'{DAD} --dad-attack latent --dad-norm linf', '--dad-norm', 'linf', r'\bl2\b')
row('train-dad-latent-pixel-eps', f'{DAD} --dad-attack latent --dad-eps 0.01', '--dad-eps', r'0\.01', r'0\.05|0\.5')
row('train-dad-codes-steps', f'{DAD} --dad-attack codes --dad-num-steps 3', '--dad-num-steps', r'\b3\b', '0.*1')
row('train-dad-attack-from', f'{DAD} --dad-attack latent --dad-attack-from input', '--dad-attack-from', 'latent',
    'pixels')  # fmt: skip
row('train-dad-gradient-vqgan', f'{DAD} --dad-gradient-vqgan demo', '--dad-gradient-vqgan', 'pixels|latent', LEAVE)
row('train-dad-gradient-vqgan-of-another', f'{DAD} --dad-attack latent --dad-gradient-vqgan other.safetensors',
    '--dad-gradient-vqgan', r'other\.safetensors|codebook', 'codebook')  # fmt: skip
row('train-dad-flags-without-dad', f'{PLAIN} --dad-eps 0.2', '--dad-eps', r'--dad-eps', r'--dad\b')
row('train-dad-and-kd', f'{DAD} --kd-model-name test_resnet', '--kd-model-name', '--dad', LEAVE)
row('train-dad-preview-interval', f'{DAD} --dad-preview-interval -1', '--dad-preview-interval', '-1', LEAST)

# --- train: teachers -------------------------------------------------------------------------------------------------
NO_TEACHER = f'{PLAIN} --dad --dad-vqgan demo --dad-look 0'
row('teacher-without-source', f'{NO_TEACHER} --dad-teacher resnet50', '--dad-teacher', 'resnet50', 'timm:')
row('teacher-source', f'{NO_TEACHER} --dad-teacher clip:ViT-B-32/openai', '--dad-teacher', 'clip:ViT', 'open_clip:')
row('teacher-timm-name', f'{NO_TEACHER} --dad-teacher timm:resnet5O', '--dad-teacher', 'resnet5O', CHOICE)
row('teacher-timm-tag', f'{NO_TEACHER} --dad-teacher timm:test_resnet.r160_in2k', '--dad-teacher', 'r160_in2k',
    'r160_in1k|tag')  # fmt: skip
row('teacher-timm-of-nothing', f'{NO_TEACHER} --dad-teacher timm:', '--dad-teacher', r'timm:', CHOICE)
row('teacher-clip-name', f'{NO_TEACHER} --dad-teacher open_clip:ViT-L-15/openai', '--dad-teacher', 'ViT-L-15', CHOICE)
row('teacher-clip-tag', f'{NO_TEACHER} --dad-teacher open_clip:ViT-B-32/opena1', '--dad-teacher', 'opena1', 'openai')
row('teacher-clip-without-tag', f'{NO_TEACHER} --dad-teacher open_clip:ViT-B-32', '--dad-teacher', 'ViT-B-32', 'openai')
row('teacher-clip-folder', f'{NO_TEACHER} --dad-teacher open_clip:local-dir:pictures', '--dad-teacher', 'pictures',
    r'config|contains no|no open_clip|layout')  # fmt: skip
row('teacher-timm-folder-missing', f'{NO_TEACHER} --dad-teacher timm:local-dir:gone', '--dad-teacher', 'gone', ABSENT)
row('teacher-probe-missing', f'{NO_TEACHER} --dad-teacher probe:gone.safetensors', '--dad-teacher',
    r'gone\.safetensors', ABSENT + '|no file|timm-dad probe')  # fmt: skip
row('teacher-probe-of-a-vqgan', f'{NO_TEACHER} --dad-teacher probe:vqgan.safetensors', '--dad-teacher',
    r'vqgan\.safetensors', 'timm-dad probe|head')  # fmt: skip
row('teacher-checkpoint-text', f'{NO_TEACHER} --dad-teacher timm:test_resnet/names.txt', '--dad-teacher',
    r'names\.txt', FILE, files={'names.txt': 'cat\n'})  # fmt: skip
row('teacher-checkpoint-folder', f'{NO_TEACHER} --dad-teacher timm:test_resnet/pictures', '--dad-teacher', 'pictures',
    FILE)  # fmt: skip
row('teacher-checkpoint-of-vqgan', f'{NO_TEACHER} --dad-teacher timm:test_resnet/vqgan.safetensors', '--dad-teacher',
    r'vqgan\.safetensors', r'fit|lack|missing|hold|match')  # fmt: skip
row('teacher-checkpoint-flag-missing',
    f'{NO_TEACHER} --dad-teacher timm:test_resnet --dad-teacher-checkpoint gone.pth', '--dad-teacher-checkpoint',
    r'gone\.pth', ABSENT)  # fmt: skip
row('teacher-checkpoint-for-demo', f'{NO_TEACHER} --dad-teacher demo --dad-teacher-checkpoint weights.pth',
    '--dad-teacher-checkpoint', 'demo|weights', LEAVE + '|fit|lack|could not')  # fmt: skip
row('teacher-of-other-classes', f'{NO_TEACHER} --dad-teacher timm:local-dir:timm_model7', '--dad-teacher', r'\b7\b',
    'class map|--dad-class-map')  # fmt: skip
row('teacher-none', NO_TEACHER, '--dad-teacher', r'ImageNet|\b4\b|classes', 'give|name|must')
row('teacher-weights-too-few', f'{NO_TEACHER} --dad-teacher demo demo --dad-teacher-weights 1',
    '--dad-teacher-weights', r'\b1', r'\b2\b|each|one per teacher|as many')  # fmt: skip
row('teacher-weights-nan', f'{NO_TEACHER} --dad-teacher demo demo --dad-teacher-weights 1 nan',
    '--dad-teacher-weights', 'nan', LEAST)  # fmt: skip
row('teacher-temperatures-0', f'{NO_TEACHER} --dad-teacher demo demo --dad-teacher-temperatures 4 0',
    '--dad-teacher-temperatures', r'\b0', LEAST)  # fmt: skip
row('teacher-temperatures-of-one', f'{DAD} --dad-teacher-temperatures 4', '--dad-teacher-temperatures', r'\b4',
    'several')  # fmt: skip
row('teacher-temperatures-and-auto', f'{NO_TEACHER} --dad-teacher demo demo --dad-teacher-temperatures 4 5 '
    '--dad-temperature auto', '--dad-teacher-temperatures', 'auto', LEAVE)  # fmt: skip
row('teacher-wise-of-one', f'{NO_TEACHER} --dad-teacher wise:demo@0.5', '--dad-teacher', 'wise:demo@0.5', 'two SPECs')
row('teacher-wise-share', f'{NO_TEACHER} --dad-teacher wise:demo+demo@1.5', '--dad-teacher', '1.5', RANGE)
row('teacher-wise-of-another-architecture', f'{NO_TEACHER} --dad-teacher wise:demo+timm:local-dir:timm_model@0.5',
    '--dad-teacher', 'mean|size', 'alike')  # fmt: skip
row('teacher-weights-negative', f'{NO_TEACHER} --dad-teacher demo demo --dad-teacher-weights -1 2',
    '--dad-teacher-weights', '-1', LEAST)  # fmt: skip
row('teacher-weights-of-one', f'{DAD} --dad-teacher-weights 1', '--dad-teacher-weights', '--dad-teacher',
    'several|teachers')  # fmt: skip
row('teacher-names-missing', f'{DAD} --dad-classnames gone.txt', '--dad-classnames', r'gone\.txt', ABSENT)
row('teacher-names-folder', f'{DAD} --dad-classnames pictures', '--dad-classnames', 'pictures', FILE)
row('teacher-names-empty', f'{DAD} --dad-classnames a.txt', '--dad-classnames', r'a\.txt', 'empty',
    files={'a.txt': '\n\n'})  # fmt: skip
row('teacher-names-picture', f'{DAD} --dad-classnames pictures/train/cat/0.png', '--dad-classnames', r'0\.png',
    'text|UTF-8')  # fmt: skip
row('teacher-names-too-many', f'{DAD} --dad-classnames a.txt', '--dad-classnames', r'\b5\b', r'\b4\b',
    files={'a.txt': 'a\nb\nc\nd\ne\n'})  # fmt: skip
row('teacher-names-json-cut', f'{DAD} --dad-classnames a.json', '--dad-classnames', r'a\.json',
    r'json|read|expecting', files={'a.json': '["cat", "dog"'})  # fmt: skip
row('teacher-names-json-of-lists', f'{DAD} --dad-classnames a.json', '--dad-classnames', r'a\.json',
    r'list of names|map', files={'a.json': '[["cat"], ["dog"], ["fish"], ["tree"]]'})  # fmt: skip
row('teacher-names-json-lacks-a-class', f'{DAD} --dad-classnames a.json', '--dad-classnames', 'tree',
    r'class|lack|name', files={'a.json': '{"cat": "cat", "dog": "dog", "fish": "fish"}'})  # fmt: skip
row('teacher-names-csv-column', f'{DAD} --dad-classnames a.csv', '--dad-classnames', 'title', r"column '?name",
    files={'a.csv': 'title\ncat\ndog\nfish\ntree\n'})  # fmt: skip
row('teacher-names-csv-empty-cell', f'{DAD} --dad-classnames a.csv', '--dad-classnames', 'row 2', 'name',
    files={'a.csv': 'class,name\ncat,cat\ndog,\nfish,fish\ntree,tree\n'})  # fmt: skip
row('teacher-names-for-timm', f'{NO_TEACHER} --dad-teacher timm:test_resnet --dad-classnames a.txt',
    '--dad-classnames', 'zero-shot', LEAVE, files={'a.txt': 'a\nb\nc\nd\n'})  # fmt: skip
row('teacher-templates-missing', f'{DAD} --dad-templates gone.txt', '--dad-templates', r'gone\.txt', ABSENT)
row('teacher-templates-without-braces', f'{DAD} --dad-templates a.txt', '--dad-templates', 'a photo', r'\{\}',
    files={'a.txt': 'a photo\n'})  # fmt: skip
row('teacher-templates-named-field', f'{DAD} --dad-templates a.txt', '--dad-templates', r'\{name\}', r'\{\}',
    files={'a.txt': 'a photo of a {name}.\n'})  # fmt: skip
row('teacher-map-for-demo', f'{DAD} --dad-class-map a.txt', '--dad-class-map', 'zero-shot|head|demo', LEAVE,
    files={'a.txt': '0\n1\n2\n3\n'})  # fmt: skip
row('teacher-map-out-of-range', f'{NO_TEACHER} --dad-teacher timm:local-dir:timm_model7 --dad-class-map a.txt',
    r'--dad-class-map|a\.txt', r'\b7\b', r'from 0 to 6', files={'a.txt': '0\n1\n2\n7\n'})  # fmt: skip
row('teacher-map-twice', f'{NO_TEACHER} --dad-teacher timm:local-dir:timm_model7 --dad-class-map a.txt',
    r'--dad-class-map|a\.txt', r'\b3\b', r'once|twice', files={'a.txt': '0\n3\n3\n6\n'})  # fmt: skip

# --- train: VQGANs ---------------------------------------------------------------------------------------------------
NO_VQGAN = f'{PLAIN} --dad --dad-teacher demo --dad-look 0'
row('vqgan-none', NO_VQGAN, '--dad-vqgan', 'VQGAN', r'must|give|name')
row('vqgan-missing', f'{NO_VQGAN} --dad-vqgan gone.ckpt', '--dad-vqgan', r'gone\.ckpt', ABSENT)
row('vqgan-preset', f'{NO_VQGAN} --dad-vqgan openimages-f8-16385', '--dad-vqgan', '16385', r'openimages-f8-16384')
row('vqgan-hub-name', f'{NO_VQGAN} --dad-vqgan hf://ada', '--dad-vqgan', 'hf://ada', 'USER/NAME')
row('vqgan-hub-parent', f'{NO_VQGAN} --dad-vqgan hf://ada/b/../c', '--dad-vqgan', r'hf://ada/b/\.\./c', 'USER/NAME')
row('vqgan-yaml-quantizer', f'{NO_VQGAN} --dad-vqgan vqgan.safetensors', '--dad-vqgan|quantizer', 'fsq',
    'one of nearest', files={'vqgan.yaml': 'model: {target: timm_dad.VQGAN, params: {quantizer: fsq, networks: tiny, '
    'n_embed: 8, embed_dim: 4, ddconfig: {ch: 8, ch_mult: [1, 1], num_res_blocks: 1, attn_resolutions: [], '
    'in_channels: 3, out_ch: 3, z_channels: 4, resolution: 32}}}\n'})  # fmt: skip
row('vqgan-yaml-signs', f'{NO_VQGAN} --dad-vqgan vqgan.safetensors', '--dad-vqgan|n_embed', r'\b31\b',
    r'2 \*\* embed_dim', files={'vqgan.yaml': 'model: {class_path: src.Open_MAGVIT2.models.lfqgan.VQModel, init_args: '
    '{n_embed: 31, embed_dim: 5, ddconfig: {ch: 32, ch_mult: [1, 1], num_res_blocks: 1, in_channels: 3, out_ch: 3, '
    'z_channels: 5, resolution: 32}}}\n'})  # fmt: skip
row('vqgan-without-yaml', f'{NO_VQGAN} --dad-vqgan vqgan.safetensors', '--dad-vqgan', r'vqgan\.yaml', ABSENT,
    change=lambda root: (root / 'vqgan.yaml').unlink())  # fmt: skip
row('vqgan-yaml-empty', f'{NO_VQGAN} --dad-vqgan vqgan.safetensors', '--dad-vqgan', r'vqgan\.yaml', FILE,
    files={'vqgan.yaml': ''})  # fmt: skip
row('vqgan-yaml-foreign', f'{NO_VQGAN} --dad-vqgan vqgan.safetensors', '--dad-vqgan', r'vqgan\.yaml',
    r'ddconfig|lacks|model', files={'vqgan.yaml': 'model: {params: {width: 3}}\n'})  # fmt: skip
row('vqgan-yaml-cut', f'{NO_VQGAN} --dad-vqgan vqgan.safetensors', '--dad-vqgan', r'vqgan\.yaml', 'YAML|line',
    files={'vqgan.yaml': 'model: {params: [\n'})  # fmt: skip
row('vqgan-weights-text', f'{NO_VQGAN} --dad-vqgan vqgan.safetensors', '--dad-vqgan', r'vqgan\.safetensors',
    'safetensors file', files={'vqgan.safetensors': 'hello\n'})  # fmt: skip
row('vqgan-weights-of-another', f'{NO_VQGAN} --dad-vqgan vqgan.safetensors', '--dad-vqgan', r'vqgan\.safetensors',
    r'lacks|unexpected|fit',
    change=lambda root: save_file({'w': torch.ones(3)}, root / 'vqgan.safetensors'))  # fmt: skip
row('vqgan-archive', f'{NO_VQGAN} --dad-vqgan vqgan.zip', '--dad-vqgan', r'vqgan\.zip', r'unpack|\.ckpt',
    files={'vqgan.zip': b'PK\x05\x06' + bytes(18), 'vqgan.yaml': ARCHITECTURE})  # fmt: skip
row('vqgan-page', f'{NO_VQGAN} --dad-vqgan a.ckpt', '--dad-vqgan', r'a\.ckpt', r'download|checkpoint|broken',
    files={'a.ckpt': '<!DOCTYPE html>\n', 'a.yaml': ARCHITECTURE})  # fmt: skip
row('vqgan-folder', f'{NO_VQGAN} --dad-vqgan pictures', '--dad-vqgan', 'pictures', r'config\.json')
row('vqgan-folder-config-cut', f'{NO_VQGAN} --dad-vqgan folder', '--dad-vqgan', r'config\.json',
    r'json|read|expecting',
    files={'folder/config.json': '{"_class_name": "VQModel",', f'folder/{WEIGHTS}': b''})  # fmt: skip
row('vqgan-folder-of-a-vae', f'{NO_VQGAN} --dad-vqgan folder', '--dad-vqgan', 'AutoencoderKL', 'VQModel',
    files={'folder/config.json': '{"_class_name": "AutoencoderKL"}', f'folder/{WEIGHTS}': b''})  # fmt: skip
row('vqgan-size-strict', f'{DAD} --dad-strict-size --img-size 33', '--dad-strict-size|--img-size', '33',
    'multiple|divide')  # fmt: skip
row('vqgan-size-too-small', f'{DAD} --img-size 1', '--img-size', r'\b1(x1)?\b', r'at least|or more|VQGAN|small')

# --- train: DAD sets -------------------------------------------------------------------------------------------------
row('set-missing', f'{PLAIN} --dad --dad-dir gone', '--dad-dir', 'gone', 'timm-dad generate|' + ABSENT)
row('set-of-pictures', f'{PLAIN} --dad --dad-dir pictures', '--dad-dir', 'pictures', 'timm-dad generate')
row('set-is-a-file', f'{PLAIN} --dad --dad-dir set/dad_set.json', '--dad-dir', r'dad_set\.json',
    'folder|timm-dad generate')  # fmt: skip
row('set-not-finished', FROM_SET, '--dad-dir', r'\bset\b', 'finished|continue',
    change=lambda root: (root / 'set/index.json').unlink())  # fmt: skip
row('set-settings-cut', FROM_SET, '--dad-dir', r'dad_set\.json', r'damaged|altered|read|json',
    change=lambda root: shorten(root / 'set/dad_set.json'))  # fmt: skip
row('set-settings-list', FROM_SET, '--dad-dir', r'dad_set\.json', r'damaged|altered|contains|set',
    files={'set/dad_set.json': '[1, 2]\n'})  # fmt: skip
row('set-of-the-future', FROM_SET, '--dad-dir', '99', r'version|reads',
    change=lambda root: replace(root / 'set/dad_set.json', '"format_version":1', '"format_version":99'))  # fmt: skip
row('set-index-edited', FROM_SET, '--dad-dir', r'index\.json', 'repair|verify',
    change=lambda root: replace(root / 'set/index.json', '"items":12', '"items":11'))  # fmt: skip
row(
    'set-index-text',
    FROM_SET,
    '--dad-dir',
    r'index\.json',
    'repair|verify|damaged|json',
    files={'set/index.json': 'hello\n'},
)
row('set-manifest-text', FROM_SET, '--dad-dir', r'000000\.jsonl', 'repair|verify',
    files={'set/manifest/000000.jsonl': 'hello\n'})  # fmt: skip
row('set-of-another-size', f'{FROM_SET} --img-size 48', '--dad-dir', '48', '--img-size 32')
row('set-of-another-split', f'{FROM_SET} --train-split validation', '--dad-dir', r'\b12\b|image 0|another', 'split|set')
row('set-of-renamed-pictures', FROM_SET, '--dad-dir', r'name|0\.png', r'set|image',
    change=lambda root: (root / 'pictures/train/cat/0.png').rename(root / 'pictures/train/cat/00.png'))  # fmt: skip
row('set-of-other-classes', f'{FROM_SET} --num-classes 5', '--num-classes|--dad-dir', r'\b5\b', r'\b4\b')
row('set-on-the-hub', FROM_SET.replace('--dad-dir set', '--dad-dir hf://greys'), '--dad-dir', 'hf://greys', 'USER/NAME')
row(
    'set-in-no-store',
    FROM_SET.replace('--dad-dir set', '--dad-dir nothing://set'),
    '--dad-dir',
    'nothing://set',
    'store',
)
row('set-not-in-a-store', FROM_SET.replace('--dad-dir set', '--dad-dir memory://set'), '--dad-dir', 'memory://set',
    'timm-dad generate')  # fmt: skip
row('set-and-vqgan', f'{FROM_SET} --dad-vqgan demo', '--dad-vqgan', r'\bset\b', LEAVE)
row('set-and-eps', f'{FROM_SET} --dad-eps 0.2', '--dad-eps', '--dad-eps', LEAVE)
row('set-and-cache', f'{FROM_SET} --dad-cache 2', '--dad-cache', '--dad-dir', LEAVE)
row('set-without-logits', f'{FROM_SET} --dad-stored-logits --no-aug', '--dad-stored-logits', r'\bset\b',
    '--dad-store-logits')  # fmt: skip
row('set-logits-without-set', f'{DAD} --dad-stored-logits', '--dad-stored-logits', '--dad-dir', LEAVE)
row('features-of-several-teachers', f'{DAD} --dad-teacher demo timm:local-dir:timm_model --dad-feature-weight 1',
    '--dad-feature-weight', 'demo', LEAVE)  # fmt: skip
row('features-of-no-view', f'{DAD} --dad-feature-weight 1 --dad-kd-weight 0 --dad-weight 0', '--dad-feature-weight',
    'kd_weight', LEAST)  # fmt: skip
row('features-negative', f'{DAD} --dad-feature-weight -1', '--dad-feature-weight', '-1', LEAST)
row('set-of-another-teacher', f'{FROM_SET} --dad-teacher timm:local-dir:timm_model', '--dad-dir', 'demo', 'teacher')

# --- demo ------------------------------------------------------------------------------------------------------------
row('demo-seed-twice', 'demo --seeds 3 3', '--seeds', '3, 3|3 3', 'different|once')
row('demo-seeds-too-many', f'demo --seeds {" ".join(map(str, range(11)))}', '--seeds', '10', '10')
row('demo-seed-word', 'demo --seeds zero', '--seeds', 'zero', WHOLE)
row('demo-seed-negative', 'demo --seeds -4', '--seed', '-4', LEAST)
row('demo-data', f'demo {PICTURES}', '--data-dir', '--data-dir', 'demo|train')
row('demo-resume', 'demo --resume=auto', '--resume', '--resume', 'demo|train')
row('demo-unknown-flag', 'demo --epoch 3', '--epoch', '--epoch', r'--epochs|unrecognized')
row('demo-epochs-0', 'demo --epochs 0', '--epochs', r'\b0\b', LEAST)
row('demo-dad-flag', 'demo --dad-norm l1', '--dad-norm', 'l1', 'l2')
row('demo-output-is-a-file', 'demo --output names.txt', '--output', r'names\.txt', 'folder|cannot',
    files={'names.txt': 'cat\n'})  # fmt: skip
row('demo-output-below-a-file', 'demo --output names.txt/demo', '--output', r'names\.txt', 'folder|cannot',
    files={'names.txt': 'cat\n'})  # fmt: skip

# --- preview ---------------------------------------------------------------------------------------------------------
row('preview-images-0', f'{PREVIEW} --images 0', '--images', r'\b0\b', LEAST)
row('preview-index-negative', f'{PREVIEW.replace("--images 1", "")} --index -1', '--index', '-1', LEAST)
row('preview-index-too-large', f'{PREVIEW.replace("--images 1", "")} --index 3 999', '--index', '999', r'\b1[01]\b')
row('preview-images-and-index', f'{PREVIEW} --index 1', '--index', '--images', 'not allowed|one of')
row('preview-img-size-0', f'{PREVIEW} --img-size 0', '--img-size', r'\b0\b', LEAST)
row('preview-two-sizes', f'{PREVIEW} --input-size 3 32 32', '--input-size', '--img-size', LEAVE + '|one of')
row('preview-channels', f'{PREVIEW.replace("--img-size 32", "")} --input-size 1 32 32', '--input-size', r'\b1\b',
    r'\b3\b')  # fmt: skip
row('preview-crop-pct', f'{PREVIEW} --crop-pct 2', '--crop-pct', '2', RANGE)
row('preview-interpolation', f'{PREVIEW} --interpolation random', '--interpolation', 'random', 'bicubic')
row('preview-seed', f'{PREVIEW} --seed -5', '--seed', '-5', LEAST)
row('preview-temperature-of-one', f'{PREVIEW} --dad-temperature 3', '--dad-temperature', 'several', 'teachers')
row('preview-temperature-auto-of-one', f'{PREVIEW} --dad-temperature auto', '--dad-temperature', 'several', 'teachers')
row('preview-split', f'{PREVIEW} --split test', '--split', 'test', 'validation')
row('preview-device', f'{PREVIEW} --device mps', '--device', 'mps', 'cuda or cpu')
row('preview-no-teacher', f'{PREVIEW.replace("--dad-teacher demo", "")}', '--dad-teacher', r'ImageNet|\b4\b',
    'give|name|must')  # fmt: skip
row('preview-output-is-a-file', f'{PREVIEW} --output names.txt', '--output', r'names\.txt', 'folder',
    files={'names.txt': 'cat\n'})  # fmt: skip
row('preview-sheet-is-a-folder', f'{PREVIEW} --output shown', '--output', r'preview\.png', 'cannot|folder',
    files={'shown/preview.png/a.txt': 'mine'})  # fmt: skip
row('preview-text-named-png', f'{PREVIEW} --images 12', r'9\.png', r'9\.png', 'decode|identify',
    files={'pictures/validation/cat/9.png': 'hello\n'})  # fmt: skip
row('preview-num-classes', f'{PREVIEW} --num-classes 7', '--num-classes', r'\b7\b', r'\b4\b')
row('preview-unknown-flag', f'{PREVIEW} --dad-epss 1', '--dad-epss', '--dad-epss', r'--dad-eps\b|unrecognized')
row('preview-one-class', f'{PREVIEW} --data-dir one', '--data-dir|--split|--num-classes', r'\b(1|one|cat)\b',
    r'2 or more|at least|two', change=lambda root: write_single(root / 'one'))  # fmt: skip

# --- info ------------------------------------------------------------------------------------------------------------
row('info-gpus-0', f'{INFO} --gpus 0', '--gpus', r'\b0\b', LEAST)
row('info-batches-0', f'{INFO} --batches 0', '--batches', r'\b0\b', LEAST)
row('info-images-negative', f'{INFO} --images -1', '--images', '-1', LEAST)
row('info-model', f'{INFO} --model vit_tiny_patch17_224', '--model', 'patch17', CHOICE)
row('info-teacher', f'{INFO} --dad --dad-vqgan demo --dad-teacher timm:nosuch', '--dad-teacher', 'nosuch', CHOICE)
row('info-vqgan', f'{INFO} --dad --dad-teacher demo --dad-vqgan gone.pth', '--dad-vqgan', r'gone\.pth', ABSENT)
row('info-data', f'{INFO} --data-dir gone', '--data-dir', 'gone', ABSENT)
row('info-resume', f'{INFO} --resume gone.pth', '--resume', r'gone\.pth', ABSENT)
row('info-unknown-flag', f'{INFO} --gpu 2', r'--gpu\b', '--gpu', r'--gpus|unrecognized')

# --- generate --------------------------------------------------------------------------------------------------------
row('generate-views-0', f'{GENERATE} --dad-views 0', '--dad-views', r'\b0\b', LEAST)
row('generate-look-negative', f'{GENERATE} --dad-look -1', '--dad-look', '-1', LEAST)
row('generate-quality-0', f'{GENERATE} --image-format jpeg --quality 0', '--quality', r'\b0\b', RANGE)
row('generate-quality-of-png', f'{GENERATE} --quality 90', '--quality', 'png|jpeg', LEAVE)
row('generate-image-format-of-codes', f'{GENERATE} --format codes --image-format webp', '--image-format', 'codes',
    f'not for|{LEAVE}')  # fmt: skip
row('generate-format', f'{GENERATE} --format tar', '--format', r'\btar', 'wds')
row('generate-shard-size-0', f'{GENERATE} --shard-size 0', '--shard-size', r'\b0\b', LEAST)
row('generate-store-logits-negative', f'{GENERATE} --dad-store-logits -1', '--dad-store-logits', '-1', LEAST)
row('generate-temperature-alone', f'{GENERATE} --dad-temperature 2', '--dad-temperature', '--dad-store-logits', LEAVE)
row('generate-temperature-auto-alone', f'{GENERATE} --dad-temperature auto', '--dad-temperature', '--dad-store-logits',
    LEAVE)  # fmt: skip
row('generate-precision-auto', f'{GENERATE} --dad-precision auto', '--dad-precision', 'auto', 'fp32')
row('generate-disagreement', f'{GENERATE} --dad-attack disagreement', '--dad-attack', 'disagreement',
    'training|student')  # fmt: skip
row('generate-batch-size-0', f'{GENERATE} -b 0', '--batch-size', r'\b0\b', LEAST)
row('generate-no-output', GENERATE.replace('--output new', ''), '--output', '--output', 'required|must|needs')
row('generate-output-empty', f'{GENERATE} --output ""', r'--output|\. contains', r"''|empty|nothing|\. ",
    'folder|name|must')  # fmt: skip
row('generate-output-is-a-file', f'{GENERATE} --output names.txt', '--output|names', r'names\.txt', 'folder|cannot',
    files={'names.txt': 'cat\n'})  # fmt: skip
row('generate-output-below-a-file', f'{GENERATE} --output names.txt/set', '--output|names', r'names\.txt',
    'folder|cannot', files={'names.txt': 'cat\n'})  # fmt: skip
row('generate-output-of-other-files', f'{GENERATE} --output mine', '--output|mine', 'thesis', 'empty folder|another',
    files={'mine/thesis.tex': '...'})  # fmt: skip
row('generate-output-on-the-hub', f'{GENERATE} --output hf://ada/greys --repair', '--output', 'hf://ada/greys',
    'folder|timm-dad push')  # fmt: skip
row('generate-output-in-no-store', f'{GENERATE} --output nothing://set', '--output', 'nothing://set', 'store')
row('generate-output-by-the-url-of-a-folder', f'{GENERATE} --output file:///tmp/set', '--output', 'file:///tmp/set',
    'without file://')  # fmt: skip
row('generate-ray-in-a-store', f'{GENERATE} --output memory://set --engine ray', '--engine ray', 'memory://set', LEAVE)
row('generate-store-with-locks', f'{GENERATE} --output memory://set --claim lock', '--claim', 'memory://set', LEAVE)
row('generate-output-of-another-set', f'{GENERATE} --output set --seed 7', '--output|set', 'seed|settings',
    'another|differ|same')  # fmt: skip
row('generate-no-vqgan', GENERATE.replace('--dad-vqgan demo', ''), '--dad-vqgan', 'VQGAN', 'must|give|name')
row('generate-no-data', GENERATE.replace(PICTURES, ''), '--data-dir', '--dataset', 'must|give|name')
row('generate-split', f'{GENERATE} --train-split tran', '--(train-)?split', 'tran', 'train')
row('generate-samples-of-a-folder', f'{GENERATE} --train-num-samples 10', '--train-num-samples', 'folder', 'for')
row('generate-classes', f'{GENERATE} --num-classes 9', '--num-classes', r'\b9\b', r'\b4\b')
row('generate-neighbours', f'{GENERATE} --dad-attack codes --dad-neighbours 100000', '--dad-neighbours', '100000',
    RANGE)  # fmt: skip
row('generate-text-named-jpg', GENERATE, '--data-dir', r'9\.jpg', 'decode|identify',
    files={'pictures/train/tree/9.jpg': 'hello\n'})  # fmt: skip
row('generate-names', f'{GENERATE} --dad-classnames a.txt', '--dad-classnames', r'\b2\b', r'\b4\b',
    files={'a.txt': 'cat\ndog\n'})  # fmt: skip

# --- verify ----------------------------------------------------------------------------------------------------------
row('verify-nothing', 'verify', 'DIR', 'DIR', 'required|needs')
row('verify-missing', 'verify gone', 'gone', 'gone', 'timm-dad generate|' + ABSENT)
row('verify-file', 'verify set/dad_set.json', r'dad_set\.json', 'dad_set', 'timm-dad generate|folder')
row('verify-pictures', 'verify pictures', 'pictures', 'pictures', 'timm-dad generate')
row('verify-not-finished', 'verify set', r'\bset\b', 'finished', 'continue',
    change=lambda root: (root / 'set/index.json').unlink())  # fmt: skip
row('verify-view-renamed', 'verify set', 'damaged', '1', 'timm-dad generate',
    change=lambda root: (root / 'set/view0/cat/0.png').rename(root / 'set/view0/cat/one.png'))  # fmt: skip
row('verify-version', 'verify set', r'dad_set\.json', '99', 'version|reads',
    change=lambda root: replace(root / 'set/dad_set.json', '"format_version":1', '"format_version":99'))  # fmt: skip
row('verify-two-sets', 'verify set pictures', 'pictures', 'pictures', 'unrecognized|one')
row('verify-not-in-a-store', 'verify memory://set', 'memory://set', 'dad_set.json', 'timm-dad generate')
row('verify-hub-address', 'verify hf://ada/greys/train', 'hf://ada/greys/train', 'hf://ada/greys/train', 'USER/NAME')

# --- push ------------------------------------------------------------------------------------------------------------
row('push-nothing', 'push', 'run:FOLDER', '--repo', 'required|needs')
row('push-no-license', PUSH.replace('--license mit ', ''), '--license', '--license', 'required')
row('push-no-data-license', PUSH.replace('--data-license mine ', ''), '--data-license', '--data-license', 'required')
row('push-license-in-words', f'{PUSH} --license "MIT License"', '--license', 'MIT License', 'identifier|such as')
row('push-data-license-empty', f'{PUSH} --data-license ""', '--data-license', "''", 'must')
row('push-repo-without-user', f'{PUSH} --repo greys', '--repo', "'greys'", 'USER/NAME')
row('push-repo-of-spaces', f'{PUSH} --repo "ada/my greys"', '--repo', 'my greys', 'USER/NAME')
row('push-missing', PUSH.replace(' set', ' gone'), 'gone', 'gone', 'timm-dad generate|' + ABSENT)
row('push-pictures', PUSH.replace(' set', ' pictures'), 'pictures', 'pictures', 'timm-dad generate')
row('push-of-the-hub', PUSH.replace(' set', ' hf://ada/greys'), 'DIR', 'hf://ada/greys', 'folder')
row('push-of-a-store', PUSH.replace(' set', ' s3://ada/greys'), 'DIR', 's3://ada/greys', 'folder')
row(
    'push-not-finished',
    PUSH,
    r'\bset\b',
    'finished',
    'continue',
    change=lambda root: (root / 'set/index.json').unlink(),
)
row('push-damaged', PUSH, r'\bset\b', r'missing: view0/cat/0\.png', '--repair',
    change=lambda root: (root / 'set/view0/cat/0.png').unlink())  # fmt: skip
row('push-dry-run-alone', PUSH.replace(' --output new', ''), '--dry-run', '--dry-run', '--output')
row('push-output-alone', PUSH.replace(' --dry-run', ''), '--output', '--dry-run', LEAVE)
row('push-output-of-other-files', f'{PUSH} --output mine', '--output', 'mine', 'empty|new',
    files={'mine/thesis.tex': '...'})  # fmt: skip
row('push-output-is-a-file', f'{PUSH} --output names.txt', '--output', r'names\.txt', 'folder',
    files={'names.txt': 'cat\n'})  # fmt: skip
row('push-run-missing', PUSH.replace(' set', ' run:gone'), r'run:FOLDER|args\.yaml', 'gone', 'folder|' + ABSENT)
row('push-run-without-best', PUSH.replace(' set', ' run:run'), 'run', r'model_best\.pth\.tar', 'checkpoint',
    change=lambda root: (root / 'run/model_best.pth.tar').unlink())  # fmt: skip
row('push-run-cut', PUSH.replace(' set', ' run:run'), r'model_best\.pth\.tar', 'model_best',
    'damaged|truncated|whole|cut', change=lambda root: shorten(root / 'run/model_best.pth.tar'))  # fmt: skip

# --- export ----------------------------------------------------------------------------------------------------------
row('export-nothing', 'export', 'RUN', '--format', 'required')
row('export-no-output', EXPORT.replace('--output new ', ''), '--output', '--output', 'required')
row('export-format-unknown', f'{EXPORT} --format pt2', '--format', 'pt2', 'onnx')
row('export-checkpoint-unknown', f'{EXPORT} --checkpoint newest', '--checkpoint', 'newest', 'last')
row('export-missing', EXPORT.replace(' run', ' gone'), r'run:FOLDER|args\.yaml', 'gone', 'folder|' + ABSENT)
row('export-pictures', EXPORT.replace(' run', ' pictures'), r'args\.yaml', 'pictures', 'folder of')
row('export-without-best', EXPORT, r'\brun\b', r'model_best\.pth\.tar', 'checkpoint',
    change=lambda root: (root / 'run/model_best.pth.tar').unlink())  # fmt: skip
row('export-without-last', f'{EXPORT} --checkpoint last', '--checkpoint', r'last\.pth\.tar', 'has no',
    change=lambda root: (root / 'run/last.pth.tar').unlink())  # fmt: skip
row('export-last-of-a-file', f'{EXPORT.replace(" run", " run/last.pth.tar")} --checkpoint best', '--checkpoint',
    r'last\.pth\.tar', LEAVE)  # fmt: skip
row('export-cut', EXPORT, r'model_best\.pth\.tar', 'model_best', 'damaged|truncated|whole|cut',
    change=lambda root: shorten(root / 'run/model_best.pth.tar'))  # fmt: skip
row('export-output-of-other-files', f'{EXPORT} --output mine', '--output', 'mine', 'empty|new',
    files={'mine/thesis.tex': '...'})  # fmt: skip
row('export-output-is-a-file', f'{EXPORT} --output names.txt', '--output', r'names\.txt', 'folder',
    files={'names.txt': 'cat\n'})  # fmt: skip

# --- evaluate --------------------------------------------------------------------------------------------------------
NO_MODEL = EVALUATE.replace('--model demo ', '')
NO_SUITE = EVALUATE.replace('--suite val=pictures/validation ', '')
row('evaluate-no-model', NO_MODEL, '--model', '--model', 'required|must|needs')
row('evaluate-model-unknown', f'{NO_MODEL} --model resnet5O', '--model', 'resnet5O', CHOICE)
row('evaluate-model-source', f'{NO_MODEL} --model onnx:net', '--model', 'onnx', 'timm:')
row('evaluate-model-of-no-name', f'{NO_MODEL} --model =demo', '--model', '=demo|nothing|empty', 'NAME|name')
row('evaluate-model-name-as-path', f'{NO_MODEL} --model a/b=demo', '--model', 'a/b', 'name|NAME|letters')
row('evaluate-run-missing', f'{NO_MODEL} --model run:gone', '--model', 'gone', ABSENT + '|args.yaml')
row('evaluate-run-without-flags', f'{NO_MODEL} --model run:pictures', '--model', 'pictures', r'args\.yaml')
row('evaluate-run-flags-empty', f'{NO_MODEL} --model run:run', r'--model|args\.yaml', r'args\.yaml', 'flags|training',
    files={'run/args.yaml': ''})  # fmt: skip
row('evaluate-run-flags-cut', f'{NO_MODEL} --model run:run', r'--model|args\.yaml', r'args\.yaml',
    'YAML|flags|folder of', files={'run/args.yaml': 'model: [test_resnet\n'})  # fmt: skip
row('evaluate-run-model-unknown', f'{NO_MODEL} --model run:run', '--model', 'test_resnot', 'timm',
    change=lambda root: replace(root / 'run/args.yaml', 'model: test_resnet', 'model: test_resnot'))  # fmt: skip
row('evaluate-run-without-best', f'{NO_MODEL} --model run:run', '--model|model_best', r'model_best',
    ABSENT + '|last|has no',
    change=lambda root: [(root / 'run' / name).unlink() for name in ('model_best.pth.tar',)])  # fmt: skip
row('evaluate-run-best-is-text', f'{NO_MODEL} --model run:run', '--model|model_best', r'model_best',
    'read|load|broken|damaged', files={'run/model_best.pth.tar': 'hello\n'})  # fmt: skip
row('evaluate-teacher-of-plain-run', f'{NO_MODEL} --model teacher:run', '--model', r'\brun\b', r'teacher|--dad')
row('evaluate-checkpoint-text', f'{NO_MODEL} --model timm:test_resnet/a.pth', '--model', r'a\.pth',
    'load|read|broken', files={'a.pth': 'hello\n'})  # fmt: skip
row('evaluate-no-suite', NO_SUITE, '--suite', '--data-root', 'NAME=PATH|must|give')
row('evaluate-suite-missing', f'{NO_SUITE} --suite val=gone', '--suite', 'val|gone', 'no data|no folder')
row('evaluate-suite-nameless', f'{NO_SUITE} --suite pictures', '--suite', 'pictures', 'NAME=')
row('evaluate-suite-empty', f'{NO_SUITE} --suite val=none', '--suite', 'none', 'class|folder', files={'none': None})
row('evaluate-suite-is-a-file', f'{NO_SUITE} --suite val=names.txt', '--suite', r'names\.txt', 'folder',
    files={'names.txt': 'cat\n'})  # fmt: skip
row('evaluate-suite-without-validation', f'{NO_SUITE} --suite far=pictures', '--suite', 'pictures', 'validation',
    change=lambda root: shutil.rmtree(root / 'pictures/validation'))  # fmt: skip
row('evaluate-suite-twice', f'{EVALUATE} --suite val=pictures/train', '--suite', r'\bval\b', r'own|another|twice|NAME')
row('evaluate-suite-name-as-path', f'{NO_SUITE} --suite ../val=pictures/train', '--suite', r'\.\./val',
    'name|NAME|letters')  # fmt: skip
row('evaluate-suite-layout', f'{NO_SUITE} --suite imagenet-a=pictures/train', '--suite', 'imagenet-a', '200|MYNAME')
row('evaluate-suite-text-named-png', EVALUATE, r'9\.png', r'9\.png', 'decode|identify|picture',
    files={'pictures/validation/dog/9.png': 'hello\n'})  # fmt: skip
row('evaluate-suite-of-other-classes',
    f'{NO_SUITE} --model timm:local-dir:timm_model7 --suite val=pictures/validation', 'timm_model7', r'\b7\b',
    'class map|--(dad-)?class-map')  # fmt: skip
row('evaluate-suite-demo-style', f'{NO_SUITE} --suite demo/notto', '--suite', 'notto', 'noto')
row('evaluate-severity-6', f'{EVALUATE} --corrupt --severity 6', '--severity', '6', '5')
row('evaluate-corruption', f'{EVALUATE} --corrupt fogg', '--corrupt', 'fogg', r'\bfog\b')
row('evaluate-attack', f'{EVALUATE} --attack cw', '--attack', 'cw', 'pgd')
row('evaluate-attack-eps-word', f'{EVALUATE} --attack pgd --attack-eps small', '--attack-eps', 'small',
    r'number|4/255|invalid')  # fmt: skip
row('evaluate-attack-eps-by-zero', f'{EVALUATE} --attack pgd --attack-eps 4/0', '--attack-eps', '4/0',
    r'number|4/255|invalid')  # fmt: skip
row('evaluate-attack-eps-negative', f'{EVALUATE} --attack pgd --attack-eps=-1/255', '--attack-eps',
    r'-0\.0039|-1/255', LEAST)  # fmt: skip
row('evaluate-bootstrap', f'{EVALUATE} --bootstrap -10', '--bootstrap', '-10', LEAST)
row('evaluate-clean-unknown', f'{EVALUATE} --clean vall', '--clean', 'vall', r'\bval\b')
row('evaluate-precision', f'{EVALUATE} --precision half', '--(dad-)?precision', 'half', 'fp16')
row('evaluate-seed-negative', f'{EVALUATE} --seed -7', '--seed', '-7', LEAST)
row('evaluate-workers', f'{EVALUATE} -j -1', '--workers', '-1', LEAST)
row('evaluate-classnames-folder', f'{EVALUATE} --classnames pictures', '--(dad-)?classnames', 'pictures', FILE)
row('evaluate-classnames-too-few', f'{EVALUATE} --classnames a.txt', '--(dad-)?classnames|names', r'\b2\b', r'\b4\b',
    files={'a.txt': 'cat\ndog\n'})  # fmt: skip
row('evaluate-timm-results-missing', f'{EVALUATE} --timm-results gone', '--timm-results', 'gone',
    "results of timm|" + ABSENT)  # fmt: skip
row('evaluate-data-root-empty', f'{NO_SUITE} --data-root none', '--data-root|--suite', 'none', 'imagenet|no data',
    files={'none': None})  # fmt: skip
row('evaluate-data-root-is-a-file', f'{NO_SUITE} --data-root names.txt', '--data-root', r'names\.txt',
    'folder|no data', files={'names.txt': 'cat\n'})  # fmt: skip
row('evaluate-output-below-a-file', f'{EVALUATE} --output names.txt/new', '--output', r'names\.txt', 'folder|cannot',
    files={'names.txt': 'cat\n'})  # fmt: skip
row('evaluate-predictions-is-a-file', f'{EVALUATE} --output old', '--output|old/', 'predictions',
    'folder|cannot|directory',
    files={'old/predictions': 'mine\n'})  # fmt: skip
row('evaluate-unknown-flag', f'{EVALUATE} --suites a=b', '--suites', '--suites', r'--suite\b|unrecognized')

# --- diagnose --------------------------------------------------------------------------------------------------------
NO_OOD = DIAGNOSE.replace('--ood train=pictures/train ', '')
row('diagnose-no-ood', NO_OOD, '--ood', '--ood', 'required|must|needs')
row('diagnose-ood-missing', f'{NO_OOD} --ood far=gone', '--ood', 'gone|far', ABSENT + '|no data')
row('diagnose-ood-nameless', f'{NO_OOD} --ood pictures/train', '--ood', 'pictures/train', 'NAME=')
row('diagnose-ood-twice', f'{NO_OOD} --ood a=pictures/train a=pictures/validation', '--ood', r'\ba\b', 'own|twice')
row('diagnose-ood-of-other-classes', f'{NO_OOD} --ood noto=demo/noto', '--ood', 'noto', 'class')
row('diagnose-images-3', f'{DIAGNOSE} --images 3', '--images', r'\b3\b', '4 or more|at least 4')
row('diagnose-splits-0', f'{DIAGNOSE} --splits 0', '--splits', r'\b0\b', LEAST)
row('diagnose-distance', f'{DIAGNOSE} --distance l2', '--distance', 'l2', 'sliced')
row('diagnose-batch-size', f'{DIAGNOSE} -b -4', '--batch-size', '-4', LEAST)
row('diagnose-crop-pct', f'{DIAGNOSE} --crop-pct 0', '--crop-pct', r'\b0', LEAST)
row('diagnose-no-vqgan', DIAGNOSE.replace('--dad-vqgan demo', ''), '--dad-vqgan', 'VQGAN|--dad-dir', 'must|give|name')
row('diagnose-temperature', f'{DIAGNOSE} --dad-temperature 2', '--dad-temperature', '--student', 'for|needs')
row('diagnose-student', f'{DIAGNOSE} --student run:pictures', '--student', 'pictures', r'args\.yaml')
row('diagnose-student-unknown', f'{DIAGNOSE} --student mobilenet_v9', '--student', 'mobilenet_v9', CHOICE)
row('diagnose-student-of-other-classes', f'{DIAGNOSE} --student timm:local-dir:timm_model7', '--student', r'\b7\b',
    r'\b4\b')  # fmt: skip
row('diagnose-output-is-a-file', f'{DIAGNOSE} --output names.txt', '--output', r'names\.txt', 'folder',
    files={'names.txt': 'cat\n'})  # fmt: skip
row('diagnose-output-below-a-file', f'{DIAGNOSE} --output names.txt/new', '--output', r'names\.txt', 'folder|cannot',
    files={'names.txt': 'cat\n'})  # fmt: skip
row('diagnose-set-and-size', f'{DIAGNOSE.replace("--dad-vqgan demo", "")} --split train --dad-dir set', '--img-size',
    'DAD set|--dad-dir', LEAVE)  # fmt: skip
row('diagnose-set-of-another-split',
    f'{DIAGNOSE.replace("--dad-vqgan demo", "").replace("--img-size 32", "")} --dad-dir set', '--dad-dir',
    r'\b12\b|image 0|another', 'split')  # fmt: skip

# --- probe -----------------------------------------------------------------------------------------------------------
NO_OUTPUT = PROBE.replace(' --output new.safetensors', '')
row('probe-no-output', NO_OUTPUT, '--output', '--output', 'required|must|needs')
row('probe-output-suffix', f'{NO_OUTPUT} --output head.pth', '--output', r'head\.pth', r'\.safetensors')
row('probe-output-folder-missing', f'{NO_OUTPUT} --output gone/head.safetensors', '--output', 'gone', 'folder|exist')
row('probe-output-is-a-folder', f'{NO_OUTPUT} --output a.safetensors', '--output', r'a\.safetensors', 'folder|file',
    files={'a.safetensors': None})  # fmt: skip
row('probe-held-out-0', f'{PROBE} --held-out 0', '--held-out', r'\b0', RANGE)
row('probe-held-out-1.5', f'{PROBE} --held-out 1.5', '--held-out', r'1\.5', RANGE)
row('probe-held-out-nan', f'{PROBE} --held-out nan', '--held-out', 'nan', RANGE)
row('probe-batch-size', f'{PROBE} -b 0', '--batch-size', r'\b0\b', LEAST)
row('probe-seed', f'{PROBE} --seed {-(10**30)}', '--seed', '-10{30}', RANGE + '|or more')
row('probe-precision', f'{PROBE} --precision tf32', '--(dad-)?precision', 'tf32', 'fp32')
row('probe-teacher-without-source', f'{PROBE} --teacher resnet18', '--(dad-)?teacher', 'resnet18', 'timm:')
row('probe-teacher-unknown', f'{PROBE} --teacher timm:resnet18x', '--(dad-)?teacher', 'resnet18x', CHOICE)
row('probe-teacher-folder', f'{PROBE} --teacher timm:local-dir:pictures', '--(dad-)?teacher', 'pictures',
    r'config|layout|contains')  # fmt: skip
row('probe-no-data', PROBE.replace(PICTURES, ''), '--data-dir', '--dataset', 'must|give|name')
row('probe-split', f'{PROBE} --train-split tain', '--(train-)?split', 'tain', 'train')
row('probe-one-picture-a-class', f'{PROBE} --data-dir few', '--data-dir|--held-out|class', 'one picture|every class',
    'two|2', change=lambda root: write_pictures(root / 'few', train=1))  # fmt: skip

# --- vqgan -----------------------------------------------------------------------------------------------------------
row('vqgan-no-command', 'vqgan', 'vqgan', 'train', 'distill')
row('vqgan-command', 'vqgan tune', 'command', 'tune', 'train')
row('vqgan-train-ch', f'{VQGAN} --ch 20', r'--ch\b', '20', '32')
row('vqgan-train-ch-mult', f'{VQGAN} --ch-mult 0 1', '--ch-mult', r'\b0\b', LEAST)
row('vqgan-train-n-embed', f'{VQGAN} --n-embed 0', '--n-embed', r'\b0\b', LEAST)
row('vqgan-train-attn', f'{VQGAN} --attn-resolutions 7', '--attn-resolutions', r'\b7\b', r'\b16\b')
row('vqgan-train-img-size', f'{VQGAN} --img-size 33', '--img-size', '33', r'\b(32|34)\b')
row('vqgan-train-length-twice', f'{VQGAN} --epochs 3', '--epochs', '--steps', 'not allowed|one of')
row('vqgan-train-steps-0', f'{VQGAN} --steps 0', '--steps', r'\b0\b', LEAST)
row('vqgan-train-lr', f'{VQGAN} --lr -1', '--lr', '-1', LEAST)
row('vqgan-train-lr-nan', f'{VQGAN} --lr nan', '--lr', 'nan', LEAST)
row('vqgan-train-scale', f'{VQGAN} --scale 0 1', '--scale', r'\b0', r'0 <|positive|more than 0')
row('vqgan-train-hflip', f'{VQGAN} --hflip 2', '--hflip', '2', RANGE)
row('vqgan-train-restart', f'{VQGAN} --restart-until 2', '--restart-until', '2', RANGE)
row('vqgan-train-seed', f'{VQGAN} --seed {10**30}', '--seed', '10{30}', RANGE)
row('vqgan-train-no-data', VQGAN.replace(PICTURES, ''), '--data-dir', '--dataset', 'must|give|name')
row('vqgan-train-val-split', f'{VQGAN} --val-split ""', '--val-split', "split|''", 'must|name')
row('vqgan-train-resume', f'{VQGAN} --resume yes', '--resume', 'yes', 'auto')
row('vqgan-train-resume-nothing', f'{VQGAN.replace("--output new", "")} --resume auto', '--resume', '--output',
    'needs|give')  # fmt: skip
row('vqgan-train-init-and-ch', f'{VQGAN} --init demo', '--ch', '--init', 'one of|leave|part')
row('vqgan-train-init-missing', f'vqgan train {PICTURES} --init gone.ckpt --output new', '--init', r'gone\.ckpt',
    ABSENT)  # fmt: skip
row('vqgan-train-output-is-a-file', f'{VQGAN} --output names.txt', '--output', r'names\.txt', 'folder|cannot',
    files={'names.txt': 'cat\n'})  # fmt: skip
row('vqgan-train-text-named-png', VQGAN, '--(train-)?split|--data-dir', r'9\.png', 'decode|identify',
    files={'pictures/train/cat/9.png': 'hello\n'})  # fmt: skip
row('vqgan-train-stream', f'{VQGAN} --dataset wds/x', '--dataset|--data-dir|--(train-)?split', 'wds/x',
    'no images|stream|index')  # fmt: skip
row('vqgan-distill-none', DISTILL.replace('--vqgan demo', ''), '--vqgan', 'VQGAN', 'must|name')
row('vqgan-distill-missing', f'{DISTILL} --vqgan gone', '--vqgan', 'gone', ABSENT)
row('vqgan-distill-tiny', f'{DISTILL} --vqgan tiny.safetensors', '--vqgan', r'tiny\.safetensors', 'tiny')
row('vqgan-distill-ch', f'{DISTILL} --ch 0', r'--ch\b', r'\b0\b', LEAST)
row('vqgan-distill-img-size', f'{DISTILL} --img-size 30', '--img-size', '30', r'multiple|28|32')
row('vqgan-distill-flag-of-train', f'{DISTILL} --n-embed 8', '--n-embed', '--n-embed', 'unrecognized|train')

# --- convert ---------------------------------------------------------------------------------------------------------
row('convert-nothing', 'convert', 'CKPT', 'CKPT', 'required|needs')
row('convert-missing', 'convert gone.ckpt', r'gone\.ckpt', 'gone', ABSENT)
row('convert-folder', 'convert pictures', 'pictures', 'pictures', ABSENT + '|file|folder')
row('convert-suffix', 'convert vqgan.safetensors', r'vqgan\.safetensors', 'safetensors', r'\.ckpt')
row('convert-text', 'convert a.ckpt', r'a\.ckpt', 'hel|he', 'no checkpoint|download',
    files={'a.ckpt': 'hello\n', 'a.yaml': ARCHITECTURE})  # fmt: skip
row('convert-empty', 'convert a.ckpt', r'a\.ckpt', r'a\.ckpt', 'no checkpoint|download|empty',
    files={'a.ckpt': b'', 'a.yaml': ARCHITECTURE})  # fmt: skip
row('convert-without-yaml', 'convert weights.pth', r'weights\.yaml', r'weights\.yaml', ABSENT)
row('convert-yaml-foreign', 'convert weights.pth', r'weights\.yaml', r'weights\.yaml', r'ddconfig|lacks|model|VQGAN',
    files={'weights.yaml': 'epochs: 3\n'})  # fmt: skip
row('convert-of-another-network', 'convert weights.pth', r'weights\.pth', r'weights\.pth', 'lacks|unexpected',
    files={'weights.yaml': ARCHITECTURE})  # fmt: skip
row('convert-config-unknown', 'convert weights.pth --config openimages-f9', '--config', 'openimages-f9',
    'openimages-f8')  # fmt: skip
row('convert-config-twice', 'convert weights.pth --config a.yaml', r'weights\.yaml', r'weights\.yaml', 'leave|move',
    files={'weights.yaml': ARCHITECTURE, 'a.yaml': ARCHITECTURE})  # fmt: skip
row('convert-config-folder', 'convert weights.pth --config pictures', '--config', 'pictures', 'YAML')
row('convert-target-there', 'convert weights.pth', r'weights\.safetensors', r'weights\.safetensors', 'move|there',
    files={'weights.safetensors': b'mine', 'weights.yaml': ARCHITECTURE})  # fmt: skip
row('convert-no-weights', 'convert a.pt', r'a\.pt', r'int|list|1', 'weights', files={'a.yaml': ARCHITECTURE},
    change=lambda root: torch.save([1], root / 'a.pt'))  # fmt: skip

# --- patch, run ------------------------------------------------------------------------------------------------------
row('patch-nothing', 'patch', 'path', 'path', 'required|needs')
row('patch-missing', 'patch gone/train.py', r'gone', r'train\.py', ABSENT)
row('patch-folder-without-script', 'patch pictures', 'pictures', r'train\.py', ABSENT)
row('patch-other-suffix', 'patch notes.md', r'notes\.md', r'notes\.md', r'train\.py', files={'notes.md': '#\n'})
row('patch-foreign', 'patch train.py', r'train\.py', r'train\.py', 'is unchanged|lines',
    files={'train.py': 'print(1)\n'})  # fmt: skip
row('patch-empty', 'patch train.py', r'train\.py', r'train\.py', 'is unchanged|lines', files={'train.py': b''})
row('patch-revert-foreign', 'patch train.py --revert', r'train\.py', r'train\.py', 'is unchanged|lines',
    files={'train.py': 'from timm_dad import timm_train as dad\n'})  # fmt: skip
row('patch-script-is-a-folder', 'patch checkout', r'train\.py', r'train\.py', 'director|folder|file',
    files={'checkout/train.py': None})  # fmt: skip
row('patch-unknown-flag', 'patch train.py --undo', '--undo', '--undo', 'unrecognized|--revert',
    files={'train.py': 'print(1)\n'})  # fmt: skip
row('run-nothing', 'run', 'script', 'script', 'required|needs')
row('run-missing', 'run gone/train.py --dad', r'gone/train\.py', 'gone', ABSENT + '|must be')
row('run-folder', 'run pictures --dad', 'pictures', 'pictures', 'file')
row('run-foreign', 'run train.py --dad', r'train\.py', r'train\.py', 'is unchanged|lines',
    files={'train.py': 'print(1)\n'})  # fmt: skip
row('run-flag-first', 'run --dad train.py', '--dad|script', '--dad|script', 'required|path',
    files={'train.py': 'print(1)\n'})  # fmt: skip

# --- init ------------------------------------------------------------------------------------------------------------
row('init-data-missing', INIT.replace('pictures', 'gone'), '--data-dir', 'gone', ABSENT)
row('init-data-is-a-file', INIT.replace('pictures', 'names.txt'), '--data-dir', r'names\.txt', 'folder',
    files={'names.txt': 'cat\n'})  # fmt: skip
row('init-no-data', 'init --output new.yaml', 'DATA', '--dataset', 'folder')
row('init-data-twice', f'{INIT} --data-dir other', '--data-dir', 'other', LEAVE)
row('init-data-empty', INIT.replace('pictures', 'none'), '--data-dir', 'none', 'one folder per class',
    files={'none': None})  # fmt: skip
row('init-one-class', INIT.replace('pictures', 'one'), '--data-dir', 'cat', 'two',
    change=lambda root: write_single(root / 'one'))  # fmt: skip
row('init-flat-of-one-class', INIT.replace('pictures', 'flat'), '--data-dir', r"'cat'", 'two classes or more',
    change=lambda root: _flat(root, cat=2))  # fmt: skip
row('init-flat-of-texts', INIT.replace('pictures', 'flat'), 'flat', r"'cat': 0", 'pictures directly inside',
    files={'flat/cat/a.txt': 'x', 'flat/dog/a.txt': 'x'})  # fmt: skip
row('init-split-typo', f'{INIT} --val-split vall', '--val-split', 'vall', 'validation')
row('init-split-empty', f'{INIT} --train-split ""', '--train-split', "''", 'two splits')
row('init-split-twice', f'{INIT} --train-split validation', '--train-split', 'validation', 'two splits')
row('init-output-there', INIT.replace('new.yaml', 'names.txt'), '--output', r'names\.txt', '--force',
    files={'names.txt': 'cat\n'})  # fmt: skip
row('init-output-folder', INIT.replace('new.yaml', 'none'), '--output', 'none', 'file', files={'none': None})
row('init-output-below-a-file', INIT.replace('new.yaml', 'names.txt/a.yaml'), '--output', r'names\.txt', 'folder',
    files={'names.txt': 'cat\n'})  # fmt: skip
row('init-links-there', INIT.replace('pictures', 'flat'), 'flat-split', 'flat-split', '--force',
    files={'flat-split/a.txt': 'x'}, change=lambda root: _flat(root, cat=2, dog=2))  # fmt: skip
row('init-img-size-small', f'{INIT} --img-size 16', '--img-size', '16', LEAST)
row('init-img-size-odd', f'{INIT} --img-size 50', '--img-size', '50', 'multiple of 4')
row('init-teacher', f'{INIT} --dad-teacher resnet50', '--dad-teacher', 'resnet50', 'timm:')
row('init-device', f'{INIT} --device gpu', '--device', 'gpu', 'cuda or cpu')
row('init-dataset-kind', 'init pictures --dataset wsd/x --output new.yaml', '--dataset', 'wsd/x', 'wds/')
row('init-classes', f'{INIT} --num-classes 7', '--num-classes', '7', r'\b4\b')
row('init-flag-unknown', f'{INIT} --epoch 3', '--epoch', '--epoch', 'unrecognized')


def write_single(root):
    """Pictures of one class."""
    write_pictures(root, train=(4, 0, 0, 0), validation=(4, 0, 0, 0))
    for folder in [path for path in root.glob('*/*') if path.name != 'cat']:
        folder.rmdir()


def _flat(root, **counts):
    """A folder ``flat`` of class folders, without splits."""
    write_pictures(root / 'all', train=max(counts.values()))
    for name in counts:
        shutil.move(root / 'all' / 'train' / name, root / 'flat' / name)
    shutil.rmtree(root / 'all')


def shorten(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def replace(path, old, new):
    """Edit a text that holds ``old`` once."""
    text = path.read_text()
    assert text.count(old) == 1, f'{path}: {text[:500]}'
    path.write_text(text.replace(old, new))


def _pictures(path):
    write_pictures(path, train=3, validation=(3, 3, 3, 2))


def _set(path):
    _pictures(path.parent / 'of_set')
    command = GENERATE.replace('pictures', str(path.parent / 'of_set')).replace('--output new', f'--output {path}')
    main(shlex.split(f'{command} --shard-size 5 --format folder'))


def _run(path):
    _pictures(path.parent / 'of_run')
    command = PLAIN.replace('pictures', str(path.parent / 'of_run')).replace('--experiment new', '--experiment run')
    train_dad.main([*shlex.split(command)[1:], '--output', str(path.parent)])


def _timm_model(num_classes):
    """A folder as ``timm:local-dir:`` takes it."""

    def write(path):
        model = timm.create_model('test_resnet', num_classes=num_classes)
        path.mkdir()
        timm.models.save_for_hf(model, path, model_config={'num_classes': num_classes})

    return write


def _other_vqgan(path):
    vqgan = load_vqgan(DEMO_VQGAN)
    vqgan.codebook.data.add_(0.1)
    save_tiny(vqgan, path)


# What a command line's words stand for; a suffix .yaml beside comes along.
SHARED = {
    'pictures': _pictures,
    'set': _set,
    'run': _run,
    'timm_model': _timm_model(4),
    'timm_model7': _timm_model(7),
    'weights.pth': lambda path: torch.save(timm.create_model('test_resnet', num_classes=4).state_dict(), path),
    'vqgan.safetensors': lambda path: [
        shutil.copy(Path(DEMO_VQGAN).with_suffix(suffix), path.with_suffix(suffix))
        for suffix in ('.safetensors', '.yaml')
    ],
    'tiny.safetensors': lambda path: save_tiny(load_vqgan(DEMO_VQGAN), path),
    'other.safetensors': _other_vqgan,
}


@pytest.fixture(scope='session')
def shared(tmp_path_factory):
    """Gives the path of a shared input, which is made once and never changed."""
    root = tmp_path_factory.mktemp('shared')

    def of(name):
        path = root / name
        if not path.exists():
            with torch.random.fork_rng():
                torch.manual_seed(0)
                SHARED[name](path)
        return path

    return of


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with a folder for temporary files in it."""
    (tmp_path / 'temporary').mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'temporary'))
    monkeypatch.setattr(sys, 'argv', ['timm-dad'])
    monkeypatch.setenv('COLUMNS', '80')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prepare(folder, command, files, change, shared):
    """Put into the folder what the command line names, and then what is wrong."""
    for name in SHARED:
        if re.search(rf'(?<![\w.]){re.escape(name)}(?![\w.-])', command.partition(' ')[2]):
            for source in {shared(name), shared(name).with_suffix('.yaml')}:
                if source.is_dir():
                    shutil.copytree(source, folder / source.name)
                elif source.exists():
                    shutil.copy(source, folder)
    for name, content in files.items():
        path = folder / name
        if content is None:
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    if change is not None:
        change(folder)


def snapshot(folder):
    """Bytes of all files below a folder, and the folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob('*')}


def error_of(command, capsys, caplog):
    """The one line that a command ends with."""
    try:
        main(shlex.split(command))
    except SystemExit as stop:
        code = stop.code
    except BaseException as error:
        pytest.fail(f'a traceback: {type(error).__name__}: {str(error)[:300]}')
    else:
        pytest.fail('no error at all')
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    if isinstance(code, str):  # sys.exit(text) prints it
        lines, code = [*lines, *code.splitlines()], 1
    assert code not in (0, None)
    lines = lines[1:] if lines and lines[0].startswith('usage: ') else lines
    assert len(lines) == 1, '\n'.join(line[:200] for line in lines)
    assert len(lines[0]) <= LONGEST, f'{len(lines[0])} letters: {lines[0][:300]}'
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert not said  # a second line, where a program logs to the terminal
    return lines[0]


@pytest.mark.parametrize(('command', 'says', 'files', 'change'), ROWS)
def test_wrong_input_is_one_line_and_leaves_nothing(command, says, files, change, folder, shared, capsys, caplog):
    prepare(folder, command, files, change, shared)
    before = snapshot(folder)
    capsys.readouterr()
    line = error_of(command, capsys, caplog)
    for pattern in says:
        assert re.search(pattern, line, re.IGNORECASE), f'{pattern!r} is not in: {line}'
    after = snapshot(folder)
    assert sorted(after) == sorted(before)
    assert after == before


def test_rows_are_100_or_more_over_all_commands():
    words = Counter(param.values[0].split()[0] for param in ROWS)
    assert set(words) == set(COMMANDS)
    assert sum(words.values()) >= 100
    assert min(words.values()) >= 4
    names = [param.id for param in ROWS]
    assert len(set(names)) == len(names)

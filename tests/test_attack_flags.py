"""The flags of attacks in every space, and recipes: defaults, rules, and what is refused before anything is built."""

import argparse

import pytest
import yaml

from timm_dad.commands.generate import parse_args as parse_generate
from timm_dad.commands.preview import parse_args as parse_preview
from timm_dad.diagnosis.command import parse_args as parse_diagnose
from timm_dad.flags.attack import attack_config, describe_attack
from timm_dad.flags.dad import add_dad_args, check_dad_args, loss_config
from timm_dad.flags.recipe import RECIPES
from timm_dad.flags.train import create_parser, parse_args
from timm_dad.method.attack import AttackConfig
from timm_dad.method.code_space import CodeAttackConfig
from timm_dad.method.latent_space import LatentAttackConfig
from timm_dad.method.loss import DADLossConfig

ONLINE = ('--dataset', 'demo/noto', '--num-classes', '16', '--img-size', '32', '--dad', '--dad-teacher', 'demo')
DAD = (*ONLINE, '--dad-vqgan', 'demo')


def parse(*more):
    return parse_args([*DAD, *more])


@pytest.mark.parametrize(
    ('kind', 'config'),
    [
        ('pixels', AttackConfig()),
        ('latent', LatentAttackConfig()),
        ('codes', CodeAttackConfig()),
        ('disagreement', LatentAttackConfig(objective='disagreement')),
    ],
)
def test_defaults_are_those_of_the_space(kind, config):
    args = parse('--dad-attack', kind)
    assert attack_config(args) == config
    # What a run keeps in args.yaml says the values, not that they were left out.
    assert args.dad_eps == config.eps
    assert args.dad_num_steps == config.num_steps
    assert args.dad_neighbours == getattr(config, 'neighbours', None)
    assert args.dad_start_size == getattr(config, 'start_size', None)


def test_values_are_those_of_the_flags():
    flags = '--dad-eps 0.3 --dad-step-size 0.2 --dad-num-steps 3 --dad-random-start 0.5 --dad-start-size 1'
    expected = LatentAttackConfig(eps=0.3, step_size=0.2, num_steps=3, random_start=0.5, start_size=1.0)
    assert attack_config(parse('--dad-attack', 'latent', *flags.split())) == expected
    flags = '--dad-eps 0.1 --dad-num-steps 0 --dad-neighbours 4 --dad-candidates 1'
    expected = CodeAttackConfig(eps=0.1, num_steps=0, neighbours=4, candidates=1.0)
    assert attack_config(parse('--dad-attack', 'codes', *flags.split())) == expected


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        ('--dad-attack latent --dad-eps 0.03137', '--dad-eps of --dad-attack latent is a fraction of the latent'),
        ('--dad-attack latent --dad-eps 5', '--dad-eps: eps is in units of the length of the latents, from 0 to 2'),
        ('--dad-attack latent --dad-norm linf', '--dad-norm: norm must be l2 in the latent space'),
        ('--dad-attack latent --dad-attack-from input', '--dad-attack-from is for --dad-attack pixels, got latent'),
        ('--dad-attack latent --dad-neighbours 4', '--dad-neighbours is for --dad-attack codes, got latent'),
        ('--dad-attack codes --dad-step-size 1', '--dad-step-size is for --dad-attack pixels and latent, got codes'),
        ('--dad-attack codes --dad-norm l2', '--dad-norm is for --dad-attack pixels and latent, got codes'),
        ('--dad-attack codes --dad-eps 0.9', '--dad-candidates: candidates is a fraction, from eps'),
        ('--dad-start-size 1', '--dad-start-size is for --dad-attack latent, got pixels'),
        ('--dad-gradient-vqgan demo', '--dad-gradient-vqgan is for --dad-attack latent, codes and disagreement'),
        ('--dad-attack disagreement --dad-cache 2', '--dad-attack disagreement needs the student'),
        ('--dad-attack disagreement --dad-preview-interval 1', '--dad-preview-interval shows views without a student'),
        ('--dad-view random --dad-attack latent', '--dad-attack shapes the DAD view and needs --dad-view dad'),
        ('--dad-extra-task-weight -1', '--dad-extra-task-weight: extra_task_weight must be 0 or more'),
        ('--dad-feature-weight -1', '--dad-feature-weight: feature_weight must be 0 or more'),
        ('--dad-feature-weight 1 --dad-kd-weight 0 --dad-weight 0', '--dad-feature-weight: feature_weight is a factor'),
        ('--dad-feature-weight 1 --dad-teacher demo timm:test_vit', '--dad-feature-weight is for one teacher, got'),
        ('--dad-extra-task-weight 1 --aug-splits 2 --jsd-loss', '--dad-extra-task-weight is a task loss on one view'),
        ('--dad-extra-task-weight 1 --dad-every 2 --dad-replay 8', '--dad-replay keeps views without labels'),
        ('--dad-view random --dad-look 8', '--dad-look checks DAD views made in the training step: leave it out'),
        ('--dad-view-aug base --resplit --reprob 0.2', '--resplit spares the first view and --dad-view-aug base'),
        ('--dad-look -1', '--dad-look must be 0 or more, got -1'),
        ('--dad-eps-sched linear --dad-attack latent --dad-eps-start 0.6', '--dad-eps-start must be at most --dad-eps'),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_with_flag_rule_and_value(more, message, capsys):
    argv = [*(ONLINE if 'random' in more else DAD), *more.split()]
    with pytest.raises(SystemExit):
        parse_args(argv)
    assert message in capsys.readouterr().err.replace('\n', ' ')


@pytest.mark.parametrize('parse_command', [parse_generate, parse_preview])
def test_views_that_are_made_without_a_student_have_none_to_disagree_with(parse_command, capsys, tmp_path):
    argv = ['--dataset', 'demo/noto', '--dad-teacher', 'demo', '--dad-vqgan', 'demo', '--img-size', '32']
    argv += ['--output', str(tmp_path / 'out'), '--dad-attack', 'disagreement']
    with pytest.raises(SystemExit):
        parse_command(argv)
    assert '--dad-attack disagreement needs the student' in capsys.readouterr().err


def test_the_help_says_the_defaults_of_each_space():
    parser = argparse.ArgumentParser()
    add_dad_args(parser)
    text = ' '.join(parser.format_help().split())
    assert 'pixels: radius of the attack, in [0, 1] pixel units' in text
    assert "latent: radius of the attack, as a fraction of the length of an image's latents (default: 0.5)" in text
    assert "codes: fraction of an image's codes that is replaced (default: 0.25)" in text


def test_sets_of_before_there_were_spaces_have_the_same_attack():
    assert describe_attack(AttackConfig()) == {
        'eps': 0.1, 'step_size': 0.01, 'num_steps': 1, 'norm': 'l2', 'random_start': 0.8,
    }  # fmt: skip
    assert describe_attack(LatentAttackConfig())['space'] == 'latent'


def test_paper_is_the_default_recipe():
    assert parse() == parse('--dad-recipe', 'paper')
    assert loss_config(parse()) == DADLossConfig(temperature=4.0, task_weight=1.0, kd_weight=0.5, dad_weight=0.5)


def test_released_weighs_both_views_alike():
    """0.75 CE + 0.25 T^2 KL on the batch of clean and DAD images: means over both, so each view has half."""
    config = loss_config(parse('--dad-recipe', 'released'))
    assert config.task_weight == config.extra_task_weight == 0.75 / 2
    assert config.kd_weight == config.dad_weight == 0.25 / 2
    assert config.temperature == 4.0


def test_latent_attacks_latents_of_pictures_that_are_not_augmented_further():
    args = parse('--dad-recipe', 'latent')
    assert attack_config(args) == LatentAttackConfig()
    assert args.dad_view_aug == 'base'


def test_a_flag_overrides_the_recipe_even_with_its_own_default(tmp_path):
    for name, flags in RECIPES.items():
        for flag, value in flags.items():
            default = getattr(parse(), flag)
            assert default != value
            written = f'--{flag.replace("_", "-")}'
            assert getattr(parse('--dad-recipe', name, written, str(default)), flag) == default
    (tmp_path / 'config.yaml').write_text('dad_weight: 0.5\ndad_recipe: latent\n')
    args = parse('--config', str(tmp_path / 'config.yaml'))
    assert (args.dad_recipe, args.dad_weight, args.dad_attack) == ('latent', 0.5, 'latent')


def test_a_recipe_of_the_command_line_overrides_a_file(tmp_path):
    """The demo's file has a weight, and an args.yaml has every flag."""
    assert loss_config(parse_args(['--dad-recipe', 'released'])).dad_weight == 0.125
    assert parse_args([]).dad_weight == 1.5
    (tmp_path / 'args.yaml').write_text(yaml.safe_dump(vars(parse())))
    args = parse_args(['--config', str(tmp_path / 'args.yaml'), '--dad-recipe', 'latent'])
    assert attack_config(args) == LatentAttackConfig()
    assert (args.dad_view_aug, args.dad_weight) == ('base', 1.5)


@pytest.mark.parametrize('config', [LatentAttackConfig(), CodeAttackConfig()])
def test_radii_of_a_file_are_those_of_its_own_attack(tmp_path, config):
    (tmp_path / 'args.yaml').write_text(yaml.safe_dump(vars(parse('--dad-eps', '0.3'))))
    args = ['--config', str(tmp_path / 'args.yaml')]
    assert attack_config(parse_args(args)).eps == 0.3
    assert attack_config(parse_args([*args, '--dad-attack', config.space])) == config
    assert attack_config(parse_args([*args, '--dad-attack', config.space, '--dad-eps', '0.2'])).eps == 0.2


@pytest.mark.parametrize('parse_command', [parse_generate, parse_preview, parse_diagnose, parse_args])
@pytest.mark.parametrize('own', ['', 'dad_attack: latent\n'])
def test_every_command_leaves_the_lengths_of_another_attack_in_its_file(tmp_path, parse_command, own):
    lengths = 'dad_eps: 0.3\ndad_step_size: 0.02\n' + ('dad_attack_from: input\n' if not own else '')
    (tmp_path / 'own.yaml').write_text(own + lengths)
    argv = ['--dataset', 'demo/noto', '--num-classes', '16', '--img-size', '32', '--output', str(tmp_path / 'out')]
    argv += ['--dad-teacher', 'demo', '--dad-vqgan', 'demo', '--config', str(tmp_path / 'own.yaml')]
    argv += {parse_args: ['--dad'], parse_diagnose: ['--ood', 'demo/twemoji']}.get(parse_command, [])
    assert attack_config(parse_command(argv)).eps == 0.3
    assert attack_config(parse_command([*argv, '--dad-attack', 'codes'])) == CodeAttackConfig()
    other = AttackConfig() if own else LatentAttackConfig()
    assert attack_config(parse_command([*argv, '--dad-attack', 'pixels' if own else 'latent'])) == other


def test_a_recipe_is_an_attack_too(tmp_path):
    (tmp_path / 'own.yaml').write_text('dad_recipe: latent\ndad_eps: 0.3\ndad_gradient_vqgan: demo\n')
    argv = ['--config', str(tmp_path / 'own.yaml')]
    assert attack_config(parse(*argv)).eps == 0.3
    assert attack_config(parse(*argv, '--dad-attack', 'latent')).eps == 0.3
    assert attack_config(parse(*argv, '--dad-recipe', 'released')) == AttackConfig()
    assert attack_config(parse(*argv, '--dad-attack', 'codes')) == CodeAttackConfig()
    assert parse(*argv, '--dad-attack', 'codes').dad_gradient_vqgan == 'demo'  # which codes take, too
    (tmp_path / 'own.yaml').write_text('dad_eps: 0.3\ndad_eps_sched: linear\ndad_eps_start: 0.2\n')
    args = parse(*argv, '--dad-recipe', 'latent')
    assert attack_config(args) == LatentAttackConfig()
    assert (args.dad_eps_sched, args.dad_eps_start) == ('linear', 0.0)


@pytest.mark.parametrize('recipe', RECIPES)
def test_a_recipe_is_applied_to_a_file_that_was_written_before_it_was(tmp_path, recipe):
    """timm's script writes args.yaml with every flag, before ours are checked."""
    parser = create_parser()
    argv = [*DAD, '--dad-recipe', recipe, '--dad-prob', '0.3']
    (tmp_path / 'args.yaml').write_text(yaml.safe_dump(vars(parser.parse_args(argv))))
    again = parse_args(['--config', str(tmp_path / 'args.yaml')])
    expected = vars(parse_args(argv))
    assert {name: value for name, value in vars(again).items() if value != expected[name]}.keys() <= {'config'}


@pytest.mark.parametrize('recipe', ['paper', 'released'])
def test_a_recipe_of_the_command_line_takes_back_that_of_a_file(tmp_path, recipe):
    (tmp_path / 'args.yaml').write_text(yaml.safe_dump(vars(parse('--dad-recipe', 'latent'))))
    argv = ['--config', str(tmp_path / 'args.yaml'), '--dad-recipe', recipe]
    args = parse_args(argv)
    assert (args.dad_attack, args.dad_view_aug) == ('pixels', 'full')
    assert loss_config(args) == loss_config(parse('--dad-recipe', recipe))
    assert parse_args([*argv, '--dad-weight', '2']).dad_weight == 2.0


def test_a_file_of_dad_that_does_not_say_dad_is_warned_of(tmp_path, caplog):
    (tmp_path / 'own.yaml').write_text('dad_weight: 2\ndad_teacher: demo\n')
    argv = ['--dataset', 'demo/noto', '--num-classes', '16', '--config', str(tmp_path / 'own.yaml')]
    assert not parse_args(argv).dad
    assert '--config has flags of DAD but not dad: true' in caplog.text
    caplog.clear()
    parse_args([*argv, '--no-dad'])
    assert not caplog.text


def test_values_of_a_file_that_argparse_does_not_see():
    args = parse()
    for name, message in (('dad_attack', '--dad-attack must be one of'), ('dad_recipe', '--dad-recipe must be one of')):
        changed = argparse.Namespace(**{**vars(args), name: 'foo'})
        with pytest.raises(ValueError, match=f"{message}.*'foo'"):
            check_dad_args(changed, {})

import pytest

from timm_dad.evaluation.report.timm_results import FILES, baseline_points, is_imagenet1k_only, read_timm_results

HEAD = 'model,img_size,top1,top1_err,top5,top5_err,param_count,crop_pct,interpolation'


def write(folder, suite, *rows):
    # Numbers of parameters over a thousand millions are quoted in the published files.
    lines = [f'{model},{size},{top1},0,{top5},0,"1,013.01",0.9,bicubic' for model, size, top1, top5 in rows]
    (folder / FILES[suite]).write_text('\n'.join([HEAD, *lines]) + '\n')


@pytest.fixture
def results(tmp_path):
    one, two, clip = ('a.a1_in1k', 224), ('a.a1_in1k', 288), ('c.clip_ft_in1k', 224)
    write(tmp_path, 'imagenet', (*one, 80.382, 94.598), (*two, 81.24, 95.112), ('b.in1k', 224, 70, 90), (*clip, 85, 97))
    write(tmp_path, 'imagenet-r', (*one, 40.417, 54.67), (*two, 38.993, 53.267), (*clip, 70, 80))
    return read_timm_results(tmp_path)


def test_results_by_model_suite_and_size(results):
    assert results['a.a1_in1k']['imagenet'] == {224: (80.382, 94.598), 288: (81.24, 95.112)}
    assert results['a.a1_in1k']['imagenet-r'][288] == (38.993, 53.267)
    assert set(results['b.in1k']) == {'imagenet'}


def test_baseline_is_of_imagenet1k_alone(results):
    assert baseline_points(results, 'imagenet', 'imagenet-r') == [(80.382, 40.417), (81.24, 38.993)]
    assert baseline_points(results, 'imagenet', 'imagenet-a') == []
    assert baseline_points({}, 'imagenet', 'imagenet-r') == []


@pytest.mark.parametrize(
    ('tag', 'alone'),
    [
        ('a1_in1k', True),
        ('in1k', True),
        ('augreg_in1k', True),
        ('mae_in1k_ft_in1k', True),
        ('fcmae_ft_in1k', True),
        ('nv_in1k_ft_in1k_384', True),
        ('augreg_in21k_ft_in1k', False),
        ('clip_laion2b_augreg_ft_in1k', False),
        ('openai_ft_in1k', False),
        ('fb_swsl_ig1b_ft_in1k', False),
        ('swag_lc_in1k', False),
        ('ns_jft_in1k', False),
        ('in1k_ft_in22k_in1k', False),
        ('ft_in1k', False),
        ('tf_adv_in1k', False),
        ('fb_dino', False),
        ('', False),
    ],
)
def test_tags(tag, alone):
    assert is_imagenet1k_only(f'model.{tag}') is alone


def test_folders_that_are_not_it(tmp_path):
    with pytest.raises(ValueError, match=r'--timm-results must be the folder results of .* has none of them'):
        read_timm_results(tmp_path)
    (tmp_path / FILES['imagenet']).write_text('model,top1\na,80\n')
    with pytest.raises(ValueError, match=r'results-imagenet\.csv must have the columns .* copy it again'):
        read_timm_results(tmp_path)
    (tmp_path / FILES['imagenet']).write_text(f'{HEAD}\na,224,x,0,0,0,0,0,0\n')
    with pytest.raises(ValueError, match=r"columns .* with numbers .*'x'"):
        read_timm_results(tmp_path)
